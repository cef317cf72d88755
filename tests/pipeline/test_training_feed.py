"""What is decoded, kept, shared and dealt, and what becomes of what fails: with a Ray that is not there."""

from types import SimpleNamespace

import numpy as np
import pytest

from operators.training.ordering import Order
from pipeline.training import decoding, feeder
from pipeline.training.dealing import Dealing, deal
from pipeline.training.decoding import Block, Failed, decode_piece
from pipeline.training.feeder import Decoded, Feed, Feeder
from pipeline.training.sharing import SharedBlocks

ROWS, PER_BLOCK, BATCH, STEPS = 10, 4, 6, 8
NAMES = ("a", "b", "c")


def piece(name: str) -> SimpleNamespace:
    same = {"samples": f"{name}.samples", "verdicts": f"{name}.verdicts", "labels": None, "portion": 0}
    return SimpleNamespace(name=name, rows=ROWS, store=SimpleNamespace(url="w"), **same)


def block(number: int, first: int, rows: int) -> Block:
    """Rows of a shard, whose uids say which they are."""
    uids = np.arange(first, first + rows, dtype=np.uint64) + np.uint64(100 * number)
    pixels = np.zeros((rows, 2, 2, 3), dtype=np.uint8)
    return Block(pixels, uids, uids, np.zeros((rows, 3), dtype=np.int32), None)


def feed(*names: str, **changes) -> Feed:
    pieces = tuple(piece(name) for name in names)
    order = Order(0, tuple(map(str, range(len(names)))), (ROWS,) * len(names), (1.0,) * len(names), ROWS)
    known = {"model": None, "dealing": Dealing(0, None, {}), "batch_size": BATCH, "num_steps": STEPS}
    return Feed(pieces=pieces, order=order, **known, rows_per_block=PER_BLOCK, decoders=1, keep_all=True, **changes)


class Broken(Exception):
    pass


class FakeRay:
    """References that are values, of which some are lost; what is decoded is written down."""

    def __init__(self) -> None:
        self.decoded: list[str] = []
        self.broken: set[str] = set()
        self.exceptions = SimpleNamespace(RayError=Broken)

    def put(self, value):
        return value

    def get(self, ref):
        return None if ref.startswith("end") else Failed(OSError(ref))

    def wait(self, refs, num_returns, timeout):
        assert len(set(refs)) == len(refs) == num_returns
        return refs, []

    def start_decoding(self, feed, piece, ends):
        self.decoded.append(piece.name)
        end = f"failed {piece.name}" if piece.name in self.broken else f"end {piece.name}"
        ends.append(end)
        number = NAMES.index(piece.name)
        firsts = range(0, ROWS, PER_BLOCK)
        return Decoded(tuple(block(number, first, min(PER_BLOCK, ROWS - first)) for first in firsts), end)


@pytest.fixture
def fake(monkeypatch):
    fake = FakeRay()
    monkeypatch.setattr(feeder, "ray", fake)
    monkeypatch.setattr(feeder, "start_decoding", fake.start_decoding)
    monkeypatch.setattr("pipeline.training.sharing.start_decoding", fake.start_decoding)
    monkeypatch.setattr(feeder, "DEAL_SAMPLES", 2 * BATCH)
    monkeypatch.setattr(feeder, "_DEAL", SimpleNamespace(remote=deal))
    return fake


def batches(feeder: Feeder, workers: int, first_step: int = 0) -> list[list[int]]:
    """The uids of every batch from a step on."""
    attempt = feeder.start(workers, first_step)
    found = []
    for number in range(-(-(STEPS - first_step) // 2)):
        hands = [feeder.take(attempt, rank, number)[0].uids_N2[:, 0] for rank in range(workers)]
        shares = [uids.reshape(-1, BATCH // workers) for uids in hands]
        found += np.concatenate(shares, axis=1).tolist()
    return found


def test_batches_are_the_same_for_any_workers_and_from_any_step(fake):
    given = Feeder(feed(*NAMES))
    whole = batches(given, 1)
    assert len(whole) == STEPS
    assert len(set(np.concatenate(whole[:5]).tolist())) == 3 * ROWS  # an epoch
    assert batches(Feeder(feed(*NAMES)), 3) == whole
    assert batches(given, 2, first_step=3) == whole[3:]
    assert sorted(fake.decoded) == sorted(NAMES * 2)  # once for each feeder
    assert given._deals == {}
    with pytest.raises(RuntimeError, match="attempt 1 is over"):
        given.take(1, 0, 0)


def test_what_could_not_be_decoded_is_decoded_again_by_the_next_attempt(fake):
    given = Feeder(feed(*NAMES))
    fake.broken = {"b"}
    batches(given, 1)
    fake.broken = set()
    batches(given, 1)
    assert sorted(fake.decoded) == ["a", "b", "b", "c"]


def test_shared_blocks_are_decoded_once_and_go_with_the_last_user(fake):
    shared = SharedBlocks(2)
    with shared.lent(feed("a", "b")) as first:
        with shared.lent(feed("b", "b", "c")) as second:  # the same shard twice
            assert fake.decoded == ["a", "b", "c"]
            assert second.blocks[0] is second.blocks[1] is first.blocks[1]
            fake.broken = {"b"}
        assert set(shared._blocks) == {key for key in shared._blocks if key[1] in ("a.samples", "b.samples")}
    assert not shared._blocks
    assert not shared._users
    with shared.lent(feed("b")):
        fake.broken = set()
        with shared.lent(feed("b")):
            assert fake.decoded == ["a", "b", "c", "b", "b"]
    big = feed("a").__class__(**{**vars(feed("a")), "keep_all": False})
    with shared.lent(big) as lent:
        assert lent is big


@pytest.mark.parametrize(("failures", "whole"), [(0, True), (1, True), (2, True), (3, False)])
def test_a_reader_that_fails_is_tried_again_and_then_stands_for_its_blocks(monkeypatch, failures, whole):
    attempts = []

    def decode_shard(piece, model, rows_per_block):
        attempts.append(piece.name)
        for number in range(3):
            if number == 1 and len(attempts) <= failures:
                raise OSError("gone")
            yield number

    monkeypatch.setattr(decoding, "decode_shard", decode_shard)
    monkeypatch.setattr(decoding, "_PAUSES", (0, 0))
    found = list(decode_piece(piece("a"), None, PER_BLOCK))
    assert len(attempts) == min(failures + 1, 3)
    assert len(found) == 4
    assert found[0] == 0
    if whole:
        assert found == [0, 1, 2, None]
    else:
        assert all(isinstance(value, Failed) for value in found[1:])
        with pytest.raises(OSError, match="gone"):
            feeder._deal(None, None, *found)
