"""Which kept rows go into which file, without holding a row: slices of the kept rows of each shard.

The kept rows of a pool are numbered in the order of (shard name, row). How many each shard has is in the manifest of
the last verdicts, so the driver can deal them out by their numbers alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.artifact import read_columns
from pipeline.run import Run
from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class Slice:
    """The kept rows of one shard that are numbered `start` to `stop - 1` among its kept rows.

    Attributes:
        shard: index into `Run.shards`.
        samples: the shard's part of the samples.
        verdicts: the shard's part of the last verdicts.
    """

    shard: int
    samples: str
    verdicts: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


Group = tuple[Slice, ...]
"""Slices that go into one file, in order."""


def kept_slices(run: Run) -> Group:
    """All that a run kept: one slice for each shard that kept anything."""
    assert run.entering is not None, "a run that has finished ends with verdicts"
    pairs = zip(run.samples.parts, run.entering.parts, strict=True)
    return tuple(
        Slice(i, samples.path, verdicts.path, 0, verdicts.counts["kept"])
        for i, (samples, verdicts) in enumerate(pairs)
        if verdicts.counts["kept"]
    )


def num_rows(group: Iterable[Slice]) -> int:
    """How many rows a group has."""
    return sum(len(piece) for piece in group)


def cut_every(group: Group, size: int) -> list[Group]:
    """Cuts a group into groups of `size` rows; the last may have fewer."""
    return cut_at(group, range(size, num_rows(group), size))


def cut_at(group: Group, cuts: Sequence[int]) -> list[Group]:
    """Cuts a group before each of the given rows.

    Args:
        group: at least one row.
        cuts: rising numbers of rows, each above 0 and below the number of rows.

    Returns:
        one more groups than there are cuts; none at all when the group is empty.
    """
    if not group:
        return []
    groups: list[list[Slice]] = [[]]
    waiting = list(cuts)[::-1]
    row = 0
    for piece in group:
        while waiting and waiting[-1] < row + len(piece):
            middle = piece.start + waiting.pop() - row
            if middle > piece.start:
                groups[-1].append(replace(piece, stop=middle))
            row += middle - piece.start
            piece = replace(piece, start=middle)
            groups.append([])
        groups[-1].append(piece)
        row += len(piece)
    return [tuple(pieces) for pieces in groups]


def read_kept(
    store: Store, piece: Slice, columns: Sequence[str], others: Mapping[str, tuple[str, str]] | None = None
) -> pa.Table:
    """The rows of a slice.

    Args:
        store: the workspace.
        piece: which rows.
        columns: of the samples.
        others: name -> (the shard's part of another artifact, its column), which becomes a column of that name.
    """
    samples = read_columns(store, piece.samples, list(columns)) if columns else None
    found = {name: samples[name] for name in columns} if samples else {}
    found |= {name: read_columns(store, path, [column])[column] for name, (path, column) in (others or {}).items()}
    kept = read_columns(store, piece.verdicts, ["kept"])["kept"].fill_null(False)
    return pa.table(found).filter(kept).slice(piece.start, len(piece))
