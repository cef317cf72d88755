"""Passes over shards without Ray: the same functions, one after the other."""

import contextlib
import io
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest

from operators.encoders.settings import PixelsSettings
from operators.errors import InputError
from operators.rejects import Damage
from pipeline import embed
from pipeline.artifact import publish_part, read_columns
from pipeline.listing import list_shards
from pipeline.parts import Part
from pipeline.pool import Pool
from pipeline.progress import LogProgress
from pipeline.readers.sample import ShardEnd
from pipeline.run import Run
from pipeline.storage import Store
from pipeline.stream import chunks, encode, flow
from pipeline.stream.finalise import ShardReceipts, finalise_shard
from pipeline.stream.work import Need, Pass, ShardWork
from tests.small_pools import sound, write_tar

NEED = ("raw", "image")


def run_inline(job, works, *, progress, **budget):
    """`run_pass` in this process."""
    made = []
    for work in works:
        encoder, counts, number = encode.EncodeChunks(), {}, 0
        for row in chunks.read_chunks(job, {"work": pickle.dumps(work)}):
            decoded = chunks.decode_chunk(job, row)
            (encoded,) = encoder(pa.Table.from_pylist([decoded]), job).to_pylist()
            receipt = encode.write_piece(job, encoded)
            progress.advance(receipt["rows"])
            of_chunk, end = pickle.loads(receipt["receipt"])  # noqa: S301 (our own object)
            counts = {name: counts.get(name, 0) + count for name, count in of_chunk.items()}
            number += 1
        made += finalise_shard(job, ShardReceipts(work, number, counts, end))
    return made


@pytest.fixture
def pool(tmp_path):
    (tmp_path / "pool").mkdir()
    write_tar(tmp_path / "pool" / "a.tar", sound(3))
    write_tar(tmp_path / "pool" / "b.tar", sound(5))
    return Pool.model_validate({"format": "webdataset", "path": f"{tmp_path}/pool/*.tar", "chunk_samples": 2})


@pytest.fixture
def start(pool, tmp_path, monkeypatch):
    """Starts runs over the pool that pass over shards in this process; their progress goes to `.log`."""
    monkeypatch.setattr(embed, "run_pass", run_inline)

    def start() -> Run:
        start.log = io.StringIO()
        return Run(
            store=Store(str(tmp_path / "w")),
            pool=pool,
            shards=list_shards(pool),
            seed=0,
            models={"raw": PixelsSettings(library="pixels", size=2)},
            workers=1,
            threads=1,
            progress=LogProgress(start.log),
        )

    return start


def make(run: Run) -> Run:
    embed.make(run, [NEED])
    return run


@pytest.fixture(params=[Damage.MISSING, Damage.UNREADABLE])
def second_shard(request, tmp_path, monkeypatch):
    """Takes the second shard away, or access to it, and gives it back as it was."""
    tar, away, read = tmp_path / "pool" / "b.tar", tmp_path / "away", chunks.read_shard

    def denied(pool, shard, *, rows=None):
        return iter([ShardEnd(0, request.param, "denied")]) if shard.name == "b.tar" else read(pool, shard, rows=rows)

    @contextlib.contextmanager
    def without():
        if request.param is Damage.MISSING:
            shutil.move(tar, away)
            yield
            shutil.move(away, tar)
        else:
            with monkeypatch.context() as deny:
                deny.setattr(chunks, "read_shard", denied)
                yield

    return without


def test_a_shard_that_could_not_be_read_is_tried_again(start, second_shard):
    first, second = start(), start()
    with second_shard():
        make(first)
        make(second)
    assert [part.rows for part in first.samples.parts] == [3, 0]
    assert first.samples.parts[1].notes["damage"] in {"missing", "unreadable"}
    assert second.samples.reused, "the same pool again gives the same parts"
    assert second.samples.digest == first.samples.digest
    assert second.embeddings[NEED].digest == first.embeddings[NEED].digest
    third = make(start())
    assert [part.rows for part in third.samples.parts] == [3, 5]
    assert [part.rows for part in third.embeddings[NEED].parts] == [3, 5]
    assert third.samples.parts[0].id == first.samples.parts[0].id
    assert make(start()).samples.reused


def test_a_model_that_is_needed_later_is_told_of_the_parts_that_there_are(start, second_shard):
    run = start()
    with second_shard():
        embed.make(run, [])
    make(run)
    assert [part.rows for part in run.embeddings[NEED].parts] == [3, 0]
    assert [part.rows for part in make(start()).embeddings[NEED].parts] == [3, 5]


def test_a_cut_is_a_fact_of_the_shard(start, tmp_path):
    tar = tmp_path / "pool" / "b.tar"
    tar.write_bytes(tar.read_bytes()[:4000])
    first = make(start())
    assert first.samples.parts[1].notes["damage"] == "truncated"
    again = start()
    again.dry = True
    make(again)  # finds all, or raises NotPublished
    assert again.samples.parts == first.samples.parts


def test_manifests_say_what_they_were_made_with(start):
    run = make(start())
    settings = [
        next(run.store.read_json(name)["settings"] for name in run.store.find(artifact.folder) if "manifest-" in name)
        for artifact in (run.samples, run.embeddings[NEED])
    ]
    assert settings[0] == run.pool.model_dump(include={"max_pixels", "max_member_bytes", "chunk_samples"})
    assert settings[1]["modality"] == "image"
    assert '"library":"pixels"' in settings[1]["model"]
    assert settings[1]["samples"] == run.samples.folder


def test_a_pass_over_known_samples_knows_its_total(start):
    embed.make(start(), [])
    assert "samples: started\n" in start.log.getvalue()
    make(start())
    assert "raw.image: started, 8 rows\n" in start.log.getvalue()


@pytest.fixture
def later(start):
    """A pass that embeds what is left of the second shard after a filter, as (job, work by the rows kept)."""
    run = start()
    embed.make(run, [])
    part = run.samples.parts[1]
    job = Pass(run.store, run.pool, run.samples.folder, run.models, "pieces/attempt")
    need = Need("raw", "image", "raw.image/x")

    def work(*kept: int) -> ShardWork:
        table = pa.table({"kept": [row in kept for row in range(part.rows)]})
        draft = Part("b.tar", "-".join(map(str, kept)), "", 0, 0, "")
        entering = publish_part(run.store, "verdicts/x", draft, [table], table.schema)
        return ShardWork(run.shards[1], part.id, part.path, part.rows, entering.path, ((need, "embedded"),))

    return job, work


@pytest.mark.parametrize("rows", [2, 0])
def test_rows_that_are_gone_are_not_passed_over(later, tmp_path, rows):
    job, work = later
    write_tar(tmp_path / "pool" / "b.tar", sound(rows))
    with pytest.raises(InputError) as caught:
        list(chunks.read_chunks(job, {"work": pickle.dumps(work(0, 1, 4))}))
    rule = f"shard b.tar must still hold the 3 rows that were read from it, got {rows}: run again once it is back"
    assert str(caught.value) == rule


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ((0, 1, 4), [(0, 2, [0, 1]), (2, 4, []), (4, 5, [4])]),
        ((4,), [(0, 2, []), (2, 4, []), (4, 5, [4])]),
        ((0,), [(0, 2, [0]), (2, 4, []), (4, 5, [])]),
        ((1, 2, 3), [(0, 2, [1]), (2, 4, [2, 3]), (4, 5, [])]),
        ((), [(0, 2, []), (2, 4, []), (4, 5, [])]),
    ],
)
def test_few_rows_make_no_wide_chunk(later, monkeypatch, kept, expected):
    monkeypatch.setattr(chunks, "_CHUNK_SPAN", 1)
    job, work = later
    found = [pickle.loads(row["payload"]) for row in chunks.read_chunks(job, {"work": pickle.dumps(work(*kept))})]  # noqa: S301
    assert [(start, stop, [sample.row for sample in samples]) for start, stop, samples, _ in found] == expected
    assert [end is not None for *_, end in found] == [False] * (len(expected) - 1) + [True]


def test_narrow_chunks_make_the_same_part(later, start, monkeypatch):
    job, work = later
    whole = read_columns(job.store, make(start()).embeddings[NEED].parts[1].path)["embedding"].to_pylist()
    monkeypatch.setattr(chunks, "_CHUNK_SPAN", 1)
    with start().progress.step("x") as progress:
        [(_, _, part)] = run_inline(job, [work(0, 3)], workers=1, progress=progress)
    rows = read_columns(job.store, part.path)["embedding"].to_pylist()
    assert rows == [whole[0], None, None, whole[3], None]
    assert np.count_nonzero([row is not None for row in rows]) == part.counts["kept"] == 2


def test_a_shard_is_finalised_again_after_its_worker_died(later, start):
    job, work = later
    with start().progress.step("x") as progress:
        made = run_inline(job, [work(0, 3)], workers=1, progress=progress)
    assert job.store.find(job.pieces) == {}
    assert finalise_shard(job, ShardReceipts(work(0, 3), 1, {}, ShardEnd(4))) == made


def test_a_pass_sweeps_away_the_pieces_of_dead_ones(later, monkeypatch):
    job, _ = later
    job.store.replace("pieces/dead/a/000000.arrow", b"left by a killed driver")
    monkeypatch.setattr(flow, "_run_pass", lambda *_: job.store.replace(f"{job.pieces}/a/000000.arrow", b"mine"))
    with LogProgress(io.StringIO()).step("x") as progress:
        flow.run_pass(job, [], workers=1, progress=progress)
    assert job.store.find("pieces") == {}
