"""The parts of an artifact: what is known of each, and of a hundred thousand of them in little memory."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, overload

import pyarrow as pa

_AT_ONCE = 4096
_JSON = ("counts", "notes")
"""Fields that are packed as JSON."""


@dataclass(frozen=True, slots=True)
class Part:
    """The published rows of one shard.

    Attributes:
        shard: the shard's name.
        id: the part's address inside its artifact.
        path: the Parquet file, relative to the workspace.
        rows: rows of the file: always those of the shard's `samples` part.
        size: bytes of the file.
        sha256: of the file.
        counts: what happened to the rows: `in`, `kept`, `dropped:<reason>`, `rejected:<reason>`, and a step's own.
        mask: digest of the rows that go on after this step; empty for attributes, which let every row pass.
        notes: facts that are not counts, such as a shard's damage.
    """

    shard: str
    id: str
    path: str
    rows: int
    size: int
    sha256: str
    counts: Mapping[str, int] = field(default_factory=dict)
    mask: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


_NAMES = tuple(item.name for item in fields(Part))
_KEYS = {item.name for item in fields(Part) if item.default is item.default_factory is MISSING}
_SCHEMA = pa.schema([(name, pa.int64() if name in ("rows", "size") else pa.string()) for name in _NAMES])


class Parts(Sequence[Part]):
    """Parts in a fixed order, packed: 250 bytes each where a `Part` takes 1,000. Going over them unpacks them.

    Args:
        parts: in their order.

    Attributes:
        sums: of each count over all parts.
    """

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self.sums: Counter[str] = Counter()
        self._batches: list[pa.RecordBatch] = []
        self._waiting: list[Part] = []
        for part in parts:
            self.append(part)

    def append(self, part: Part) -> None:
        """Adds one at the end: for those who make these parts."""
        self.sums.update(part.counts)
        self._waiting.append(part)
        if len(self._waiting) == _AT_ONCE:
            self._batches.append(_pack(self._waiting))
            self._waiting = []

    def take(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """For `json`'s `object_hook`: takes what is a part, and leaves everything else where it is."""
        if not record.keys() >= _KEYS:
            return record
        self.append(Part(**record))
        return None

    def column(self, name: str) -> list[Any]:
        """One field of all parts that is text or a number."""
        assert name not in _JSON, name
        packed = [value for batch in self._batches for value in batch[name].to_pylist()]
        return packed + [getattr(part, name) for part in self._waiting]

    def __len__(self) -> int:
        return len(self._batches) * _AT_ONCE + len(self._waiting)

    def __iter__(self) -> Iterator[Part]:
        for batch in self._batches:
            yield from _unpack(batch)
        yield from self._waiting

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> list[Part]: ...
    def __getitem__(self, index: int | slice) -> Part | list[Part]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        number, row = divmod(index % len(self), _AT_ONCE)
        if number == len(self._batches):
            return self._waiting[row]
        return next(_unpack(self._batches[number].slice(row, 1)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Parts)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # it grows while it is made

    def __repr__(self) -> str:
        return f"Parts({list(self)})"


def _pack(parts: Sequence[Part]) -> pa.RecordBatch:
    columns = {name: [getattr(part, name) for part in parts] for name in _NAMES}
    columns |= {name: [json.dumps(dict(value), ensure_ascii=False) for value in columns[name]] for name in _JSON}
    # Arrow's own pool would take twice as much for so small buffers that stay.
    pool = pa.system_memory_pool()
    arrays = [pa.array(columns[item.name], item.type, memory_pool=pool) for item in _SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _unpack(batch: pa.RecordBatch) -> Iterator[Part]:
    columns = {name: batch[name].to_pylist() for name in _NAMES}
    columns |= {name: map(json.loads, columns[name]) for name in _JSON}
    yield from map(Part, *columns.values())
