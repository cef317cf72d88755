"""What Prometheus is told: by one curation on a Ray of its own, and by the parts, each alone."""

import re
import socket
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from operators.errors import WinnowError
from pipeline import metrics
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.progress import Progress
from pipeline.stream import encode
from pipeline.training.batches import Batches
from tests.small_pools import sound, write_tar

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"ray_(winnow_\w+)\{(.*)\} (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@pytest.fixture
def counted(monkeypatch):
    """What is counted, by name and labels, in place of what Ray counts."""
    counted = Counter()

    class Fake:
        def __init__(self, metric):
            self.name, self.labels = metric.name, metric.labels

        def inc(self, amount, labels):
            assert tuple(labels) == self.labels
            counted[self.name, *labels.values()] += amount

    monkeypatch.setattr(metrics, "_made", lambda kind, metric: Fake(metric))
    return counted


def test_rows_are_counted_by_step_and_other_units_are_not(counted):
    with Progress().step("rules") as step:
        step.advance(3, dropped=1)
        step.advance(2)
    with Progress().step("train", unit="samples") as step:
        step.advance(64)
        step.advance(-32)  # a training that went back to a checkpoint
    with Progress().step("fit", unit="iterations") as step:
        step.advance(7)
    assert counted == {("winnow_rows_total", "rules"): 5, ("winnow_rows_total", "train"): 64}


def test_each_loss_is_counted_once(counted):
    metrics.count_losses("samples", {"in": 9, "kept": 7, "rejected:bad_json": 2, "uid_supplied": 9})
    metrics.count_losses("unique_uid", {"in": 9, "kept": 6, "dropped:bad_json": 2, "dropped:duplicate_uid": 1})
    metrics.count_losses("rules", {"in": 6, "kept": 5, "dropped:too_small": 1})
    assert counted == {
        ("winnow_rejects_total", "bad_json"): 2,
        ("winnow_rejects_total", "duplicate_uid"): 1,
        ("winnow_dropped_total", "rules", "too_small"): 1,
    }


def test_what_cannot_be_counted_fails_nothing(monkeypatch):
    asked = []

    def broken(kind, metric):
        asked.append(metric)
        raise WinnowError("no")

    monkeypatch.setattr(metrics, "_made", broken)
    metrics.count(metrics.ROWS, 3, step="rules")
    metrics.show(metrics.RUNS, 1, run="r", command="curate", workspace="w")
    assert asked == [metrics.ROWS, metrics.RUNS]


def test_an_encoder_works_or_waits(counted, monkeypatch):
    clock = iter([0.0, 5.0, 7.0, 7.5, 10.5])  # made; a chunk from 5 to 7, another from 7.5 to 10.5
    monkeypatch.setattr(encode.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(encode.EncodeChunks, "_encode", lambda self, batch, job: batch)
    encoder = encode.EncodeChunks()
    for _ in range(2):
        encoder(pa.table({}), None)
    assert counted == {("winnow_encoder_wait_seconds_total",): 5.5, ("winnow_encoder_busy_seconds_total",): 5.0}


def test_a_training_worker_counts_its_waiting(counted):
    batches = Batches(None, 0, 0, 1, local_size=1, steps_per_deal=1)
    batches._queue.put(RuntimeError("over"))
    with pytest.raises(RuntimeError, match="over"):
        next(iter(batches))
    assert counted[("winnow_data_wait_seconds_total",)] == batches.waited > 0


def test_names_and_labels_are_as_prometheus_has_them():
    for metric in metrics.METRICS:
        assert re.fullmatch(r"winnow_[a-z_]+(_total|_info)", metric.name)
        assert metric.meaning.endswith(".")


def test_the_documentation_names_what_there_is():
    page = (ROOT / "docs/operations.md").read_text()
    named = set(re.findall(r"winnow_[a-z_]+(?:_total|_info)", page))
    assert named == {metric.name for metric in metrics.METRICS}


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """The metrics of ours that a node serves, summed over its processes: name and our labels -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    labels = {metric.name: metric.labels for metric in metrics.METRICS}
    found: Counter[tuple[str, ...]] = Counter()
    for name, given, value in LINE.findall(text):
        own = dict(LABEL.findall(given))
        found[name, *(own[label] for label in labels[name])] += float(value)
    return found


@pytest.mark.ray
def test_a_curation_is_served_as_its_summary_has_it(tmp_path, no_ray):
    """Ray is the test's own, so that nothing else is counted; names are the test's own for the same reason."""
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", [*sound(6), {"jpg": b"no image", "txt": b"text"}])
    whole = (tmp_path / "2.tar").read_bytes()
    (tmp_path / "2.tar").write_bytes(whole[: len(whole) // 2])
    config = Curation.model_validate(
        {
            "pool": {"format": "webdataset", "path": f"{tmp_path}/*.tar", "max_reject_fraction": 0.5},
            "workspace": str(tmp_path / "w"),
            "models": {"metered": {"library": "pixels", "size": 4}},
            "steps": [
                {"step": "filter", "name": "metered_half", "column": "bytes", "keep_fraction": 0.5},
                {
                    "step": "prune",
                    "name": "metered_prune",
                    "method": "dbp",
                    "model": "metered",
                    "clusters": 2,
                    "keep": 4,
                },
            ],
            "report": False,
            "resources": {"workers": 2},
        }
    )
    port = free_port()
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    assert ray.nodes()[0]["MetricsExportPort"] == port
    summary = run_curation(config)
    rows = {step.name: step.rows_in for step in summary.steps}
    expected = {("winnow_rows_total", step): rows[step] for step in ("unique_uid", "metered_half", "metered_prune")}
    expected |= {("winnow_rejects_total", reason): count for reason, count in summary.rejected.items()}
    expected |= {
        ("winnow_dropped_total", step, reason): count
        for step, reasons in summary.dropped.items()
        for reason, count in reasons.items()
    }
    damaged = Counter(damage["reason"] for damage in summary.shards_damaged.values())
    expected |= {("winnow_shards_damaged_total", reason): count for reason, count in damaged.items()}
    expected |= {("winnow_shards_total", "metered_prune"): 3, ("winnow_rows_total", "samples"): summary.samples_seen}
    size = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    expected |= {("winnow_read_bytes_total",): 2 * size}  # for the samples, and for the embeddings after a filter
    deadline = time.monotonic() + 120
    while (found := {key: scrape(port)[key] for key in expected}) != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found == expected
    assert summary.rejected
    assert damaged == {"truncated": 1}
    after = scrape(port)
    assert [value for (name, *_), value in after.items() if name == metrics.RUNS.name] == [0.0]
