"""The report of a real run: its numbers against the artifacts, the same bytes again, and what cannot be shown."""

import json
import re
import shutil
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.main import main
from operators.images import UnusableImage
from pipeline.curate import check, curate
from pipeline.curation import Curation
from pipeline.generate import generate_pool
from pipeline.ledger import read_ledger
from pipeline.pool_plan import PoolSettings
from pipeline.progress import Progress
from pipeline.record import open_run
from pipeline.report.build import find_digest, report_digest, write_report
from pipeline.report.examples import THUMBNAIL_SIDE, rows_by_shard, thumbnail
from pipeline.report.scan import Choice
from pipeline.sample_faults import GENERATED_MEMBER_LIMIT
from pipeline.storage import Store
from pipeline.summary import summarise

STEPS = [
    {"step": "rules", "min_side": 40, "min_words": 2},
    {"step": "exact_dedup"},
    {"step": "filter", "name": "small_files", "column": "bytes", "keep_fraction": 0.9, "best": "lowest"},
    {"step": "prune", "method": "dbp", "model": "raw", "clusters": 12, "keep_fraction": 0.5, "neighbours": 5},
]


@pytest.fixture(scope="module")
def workspace(ray_here, tmp_path_factory) -> Path:
    """Of a curation of 300 samples, without a report."""
    folder = tmp_path_factory.mktemp("report")
    generate_pool(folder / "data", PoolSettings(samples=300, samples_per_shard=100))
    config = Curation.model_validate(
        {
            "pool": {
                "format": "webdataset",
                "path": f"{folder}/data/pool/*.tar",
                "max_member_bytes": GENERATED_MEMBER_LIMIT,
                "max_reject_fraction": 0.2,
            },
            "workspace": str(folder / "work"),
            "models": {"raw": {"library": "pixels", "size": 8}},
            "steps": STEPS,
            "report": False,
        }
    )
    curate(config, check(config), workers=2, progress=Progress())
    return folder / "work"


@pytest.fixture(scope="module")
def html(workspace) -> str:
    assert write(workspace, 2) is True
    return (workspace / "report.html").read_text()


def write(workspace: Path, workers: int) -> bool:
    run, config = open_run(Store(str(workspace)), workers=workers, progress=Progress())
    return write_report(run, config.steps, summarise(run, []))


@pytest.mark.ray
def test_the_headlines_are_those_of_the_summary(workspace, html):
    summary = json.loads((workspace / "summary.json").read_text())
    headlines = html.partition('<dl class="headlines">')[2].partition("</dl>")[0]
    shown = dict(re.findall(r"<dt>([a-z ]+?)(?:, .*?)?</dt><dd>([\d,]+)</dd>", headlines))
    assert {name: int(value.replace(",", "")) for name, value in shown.items()} == {
        "samples seen": summary["samples_seen"],
        "kept": summary["kept"],
        "dropped": sum(sum(reasons.values()) for reasons in summary["dropped"].values()),
        "rejected": sum(summary["rejected"].values()),
        "damaged shard": 1,
    }


@pytest.mark.ray
def test_every_section_is_there(html):
    ids = re.findall(r'<section id="([^"]+)"', html)
    steps = ["step-rules", "step-exact_dedup", "step-small_files", "step-prune"]
    assert ids == ["funnel", "glance", "rejects", *steps, "pool", "further"]


@pytest.mark.ray
def test_bars_count_every_sample_that_entered(html):
    section = html.partition('id="step-small_files"')[2].partition("</section>")[0]
    bars = set(re.findall(r"<title>([^<]+): (\d+) kept, (\d+) dropped</title>", section))
    entered = int(re.search(r"([\d,]+) samples came in", section)[1].replace(",", ""))
    assert sum(int(kept) + int(dropped) for _, kept, dropped in bars) == entered


@pytest.mark.ray
def test_the_cluster_table_is_that_of_the_step(workspace, html):
    table = pq.read_table(next(workspace.glob("prune/*/clusters.parquet")))
    expected = {(row["cluster"], row["size"], row["quota"], row["quota"]) for row in table.to_pylist() if row["size"]}
    body = html.partition('id="step-prune"')[2].partition('<table class="data"')[2].partition("</table>")[0]
    values = [re.findall(r'data-value="([^"]+)"', row) for row in body.split("<tr>")[2:]]
    assert {tuple(int(row[i]) for i in (0, 1, 5, 6)) for row in values} == expected


@pytest.mark.ray
def test_galleries_show_what_they_say(workspace, html):
    """Every uid stands under the fate that the ledger gives it."""
    ledger = {row["uid"]: row for row in pa.concat_tables(read_ledger(Store(str(workspace)))).to_pylist()}
    fates = {"Kept, at random": "kept", "Dropped, at random": "dropped", "undecodable_image": "rejected"}
    for title, verdict in fates.items():
        gallery = html.partition(f"<h3>{title}</h3>")[2].partition("<h3>")[0]
        uids = re.findall(r"<code>([0-9a-f]{32})</code>", gallery)
        assert uids
        assert {ledger[uid]["verdict"] for uid in uids} == {verdict}
    reasons = html.partition("<h3>Dropped: min_side</h3>")[2].partition("<h3>")[0]
    shown = [ledger[uid] for uid in re.findall(r"<code>([0-9a-f]{32})</code>", reasons)]
    assert {(row["step"], row["reason"]) for row in shown} == {("rules", "min_side")}


@pytest.mark.ray
def test_written_once_and_the_same_for_any_number_of_workers(workspace, html, capsys):
    path = workspace / "report.html"
    first = path.stat()
    assert write(workspace, 3) is False
    assert main(["report", str(workspace)]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    assert path.stat() == first
    path.unlink()
    assert write(workspace, 1) is True
    assert path.read_text() == html


@pytest.mark.ray
def test_an_outdated_page_is_written_again(workspace, html):
    path = workspace / "report.html"
    path.write_text(re.sub(r'(<meta name="winnow-report" content=")[0-9a-f]+', r"\g<1>0123", html))
    assert write(workspace, 2) is True
    run, config = open_run(Store(str(workspace)), workers=2, progress=Progress())
    assert find_digest(run) == report_digest(run, config.steps)
    assert path.read_text() == html


@pytest.mark.ray
def test_images_that_cannot_be_read_any_more_are_left_blank(workspace, html):
    run, config = open_run(Store(str(workspace)), workers=2, progress=Progress())
    shard = Path(run.shards[0].url)
    backup = shutil.copy2(shard, shard.with_suffix(".backup"))
    try:
        shard.write_bytes(b"")
        (workspace / "report.html").unlink()
        assert write_report(run, config.steps, summarise(run, [])) is True
        poorer = (workspace / "report.html").read_text()
        assert 0 < poorer.count("<img") < html.count("<img")
        assert poorer.count("<figure>") == html.count("<figure>")
    finally:
        shutil.move(backup, shard)
        (workspace / "report.html").write_text(html)


def test_no_finished_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "must be the workspace of a finished run" in capsys.readouterr().err


def test_thumbnails_are_small_and_keep_their_shape():
    sink = BytesIO()
    Image.new("RGB", (1200, 300), "teal").save(sink, "JPEG")
    small = thumbnail(sink.getvalue(), max_pixels=10**6)
    assert (small.width, small.height) == (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 4)
    assert small.uri.startswith("data:image/webp;base64,")
    with pytest.raises(UnusableImage):
        thumbnail(b"no image", max_pixels=10**6)


def test_rows_by_shard():
    choices = [Choice(0, 0, 2, 5), Choice(0, 0, 0, 9), Choice(1, 0, 2, 5), Choice(0, 0, 2, 1)]
    assert rows_by_shard(choices) == {0: (9,), 2: (1, 5)}
