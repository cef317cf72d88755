"""The ledger of a run whose artifacts were written by hand, without Ray."""

import pyarrow as pa
import pytest

from pipeline import ledger_writer
from pipeline.artifact import Artifact, publish_part
from pipeline.ledger import find_ledger, read_ledger
from pipeline.parts import Part
from pipeline.pool import Pool
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.storage import Store

SAMPLES = pa.schema({"uid": pa.binary(16), "shard": pa.string(), "key": pa.string(), "row": pa.int64()})
VERDICTS = pa.schema({"kept": pa.bool_(), "reason": pa.string()})


def shuffle_inline(items, produce, reduce, *, partitions, workers):
    yield reduce(pa.concat_tables([produce(item) for item in items]))


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr(ledger_writer, "shuffle", shuffle_inline)
    store = Store(str(tmp_path))
    rows = [{"uid": bytes([16 * row]) * 16, "shard": "a.tar", "key": str(row), "row": row} for row in range(3)]
    part = publish_part(store, "samples/x", Part("a.tar", "p", "", 0, 0, ""), [table(rows, SAMPLES)], SAMPLES)
    pool = Pool.model_validate({"format": "webdataset", "path": str(tmp_path)})
    run = Run(store, pool, [], seed=0, models={}, workers=1, threads=1, progress=Progress())
    run.artifacts["samples"] = Artifact("samples", "samples/x", (part,))
    return run


def table(rows, schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema)


def verdicts(run: Run, *kept: bool) -> list[Artifact]:
    rows = [{"kept": passed, "reason": None if passed else "why"} for passed in kept]
    name = "".join("ny"[passed] for passed in kept)
    draft = Part("a.tar", name, "", 0, 0, "")
    part = publish_part(run.store, "unique_uid/x", draft, [table(rows, VERDICTS)], VERDICTS)
    return [Artifact("unique_uid", "unique_uid/x", (part,))]


def found(run: Run) -> list[str]:
    return [row["verdict"] for rows in read_ledger(run.store) for row in rows.to_pylist()]


def test_what_a_killed_run_left_of_an_older_ledger_is_removed_by_the_next(run, monkeypatch):
    ledger_writer.write_ledger(run, verdicts(run, True, True, True))
    new = verdicts(run, True, False, True)
    with monkeypatch.context() as kill:
        kill.setattr(ledger_writer, "_remove_others", lambda *_: None)
        ledger_writer.write_ledger(run, new)
    assert len(run.store.find("ledger")) == 6
    assert ledger_writer.write_ledger(run, new).reused
    assert list(run.store.find("ledger")) == [file.path for file in find_ledger(run.store).files]
    assert found(run) == ["kept", "rejected", "kept"]


def test_a_ledger_that_lost_a_file_is_written_again(run):
    both = verdicts(run, True, True, False)
    ledger_writer.write_ledger(run, both)
    run.store.remove(find_ledger(run.store).files[1].path)
    assert not ledger_writer.write_ledger(run, both).reused
    assert found(run) == ["kept", "kept", "rejected"]
    assert ledger_writer.write_ledger(run, both).reused
