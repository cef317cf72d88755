"""What the tasks of a deduplication in turns leave for each other in the folder of their attempt, under `turns/`.

    rows/<bin>.arrow                     the rows of a bin: a record batch for each of its blocks, in their places
    rows/<bin>.npz                       their keys, where each block ends, and the copies of its rows
    state/<bin>-<turn>.npz               what is decided of them before a turn
    heard/<bin>-<turn>-<other bin>.npz   what some of them learn in a turn
    labels/<bin>.npz                     the group of each row among those of its block: its first member's position
    links/<bin>-<other bin>.npz          pairs of rows that connect groups of the two bins
    joined/<bin>.npz                     the groups of a bin that reach beyond one block

Everything is a function of the rows, so whoever writes a file twice writes the same. Positions count the rows of a bin.

Legend: N rows of a bin, M some of them, B blocks of a bin, H links, G groups.
"""

import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.duplicates import Block, Heard, open_block
from operators.near_pairs import screen
from pipeline.columns import embeddings, fixed_binary
from pipeline.duplicates.rows import Copies, Job, Members
from pipeline.integrity import read_arrays
from pipeline.storage import Store

Arrays = dict[str, NDArray[Any]]
Ints = NDArray[np.int64]

_CACHED = 16


@dataclass(frozen=True)
class Files:
    """The files of one deduplication.

    Attributes:
        store: the workspace.
        folder: of the attempt.
    """

    store: Store
    folder: str

    @property
    def root(self) -> str:
        """The folder of them all."""
        return f"{self.folder}/turns"

    def rows(self, bin_: int) -> str:
        """Path of a bin's rows, without an ending."""
        return f"{self.root}/rows/{bin_:06d}"

    def state(self, bin_: int, turn: int) -> str:
        """Path of what is decided before a turn."""
        return f"{self.root}/state/{bin_:06d}-{turn:04d}.npz"

    def heard(self, bin_: int, turn: int, sender: int) -> str:
        """Path of what a bin learns from the comparisons that another one makes."""
        return f"{self.root}/heard/{bin_:06d}-{turn:04d}-{sender:06d}.npz"

    def links(self, bin_: int, other: int) -> str:
        """Path of the links between two bins."""
        return f"{self.root}/links/{bin_:06d}-{other:06d}.npz"

    def labels(self, bin_: int) -> str:
        """Path of the groups inside the blocks of a bin."""
        return f"{self.root}/labels/{bin_:06d}.npz"

    def joined(self, bin_: int) -> str:
        """Path of the groups of a bin that reach beyond one block."""
        return f"{self.root}/joined/{bin_:06d}.npz"

    def write(self, path: str, arrays: Arrays) -> None:
        """Writes named arrays."""
        sink = io.BytesIO()
        np.savez(sink, **arrays)  # type: ignore[arg-type]
        self.store.replace(path, sink.getvalue())

    def read(self, path: str) -> Arrays:
        """Named arrays; not to be changed, as they are cached."""
        return _read(self.store, path)

    def write_rows(self, bin_: int, blocks: list[Members], copies: list[Copies]) -> None:
        """Writes the rows of a bin, one entry a block."""
        batches = [_batch(members) for members in blocks]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        self.store.replace(f"{self.rows(bin_)}.arrow", sink.getvalue().to_pybytes())
        key_N3 = np.concatenate([members.key_N3 for members in blocks])
        end_B = np.cumsum([len(members.key_N3) for members in blocks])
        start_B = [0, *end_B[:-1].tolist()]
        placed = [part._replace(of_M=part.of_M + start) for part, start in zip(copies, start_B, strict=True)]
        joined = Copies(*map(np.concatenate, zip(*placed, strict=True)))
        self.write(f"{self.rows(bin_)}.npz", {"key_N3": key_N3, "end_B": end_B, **joined._asdict()})

    def keys(self, bin_: int) -> NDArray[np.uint64]:
        """key_N3 of a bin's rows."""
        return self.read(f"{self.rows(bin_)}.npz")["key_N3"]

    def copies(self, bin_: int) -> Copies:
        """The copies of a bin's rows."""
        arrays = self.read(f"{self.rows(bin_)}.npz")
        return Copies(*(arrays[name] for name in Copies._fields))

    def span(self, bin_: int, place: int) -> slice:
        """Where the rows of a block stand among those of its bin."""
        end_B = self.read(f"{self.rows(bin_)}.npz")["end_B"]
        return slice(int(end_B[place - 1]) if place else 0, int(end_B[place]))

    def members(self, bin_: int, place: int) -> Members:
        """The rows of a block."""
        batch = _open_rows(self.store, f"{self.rows(bin_)}.arrow").get_batch(place)
        key_N3 = np.stack([batch[name].to_numpy() for name in ("value", "high", "low")], axis=1)
        return Members(embeddings(batch["embedding"]), key_N3, batch["unit"].to_numpy(), batch["row"].to_numpy())


def write_state(files: Files, bin_: int, turn: int, blocks: list[Block]) -> None:
    """Writes what is decided of a bin's blocks, in their places."""
    arrays = {
        "status_EN": np.concatenate([block.status_EN for block in blocks], axis=1),
        "open_N": np.concatenate([block.open_N for block in blocks]),
        "first_N3": np.concatenate([block.first_N3 for block in blocks]),
        "similarity_N": np.concatenate([block.similarity_N for block in blocks]),
    }
    files.write(files.state(bin_, turn), arrays)


def read_block(files: Files, bin_: int, turn: int, place: int) -> tuple[Members, Block]:
    """A block before a turn."""
    members, here = files.members(bin_, place), files.span(bin_, place)
    state = files.read(files.state(bin_, turn))
    known = (state["status_EN"][:, here], *(state[name][here] for name in ("open_N", "first_N3", "similarity_N")))
    return members, Block(screen(members.x_ND), members.key_N3, *known)


def fresh_block(job: Job, members: Members) -> Block:
    """A block before the first turn."""
    epsilons = len(job.rule.threshold_E)
    return open_block(screen(members.x_ND), members.key_N3, epsilons, job.stands(members.key_N3))


def letter(at_M: Ints, heard: Heard) -> Arrays:
    """What the rows at some positions of a bin learn, as arrays."""
    return {
        "at_M": at_M,
        "goes_EM": heard.goes_EN,
        "waits_EM": heard.waits_EN,
        "first_M3": heard.first_N3,
        "similarity_M": heard.similarity_N,
    }


def read_letter(arrays: Arrays) -> tuple[Ints, Heard]:
    """The inverse of `letter`."""
    names = ("goes_EM", "waits_EM", "first_M3", "similarity_M")
    return arrays["at_M"], Heard(*(arrays[name] for name in names))


def _batch(members: Members) -> pa.RecordBatch:
    columns = {
        "value": members.key_N3[:, 0],
        "high": members.key_N3[:, 1],
        "low": members.key_N3[:, 2],
        "unit": members.unit_N,
        "row": members.row_N,
        "embedding": fixed_binary(members.x_ND),
    }
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns.values()], names=list(columns))


@functools.lru_cache(maxsize=_CACHED)
def _read(store: Store, path: str) -> Arrays:
    return read_arrays(store, path)


@functools.lru_cache(maxsize=4)
def _open_rows(store: Store, path: str) -> Any:
    return pa.ipc.open_file(store.open(path))
