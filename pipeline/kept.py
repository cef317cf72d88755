"""Reading a `keys` export: which samples of a pool were kept, for a loader that filters while it loads.

    kept = load_kept("s3://bucket/curated/keys.parquet")
    dataset = wds.WebDataset(urls).select(lambda sample: kept(sample["__url__"], sample["__key__"]))

The file is Parquet, so any tool can read it: `shard` (the shard's name) and `key`, a row for each kept sample, in the
order of (shard name, row). The rows of a shard lie in row groups of their own; the file's metadata lists the shards,
those that kept nothing included, under `winnow.shards`. Only the keys of the shards at hand are ever in memory.
"""

import json
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import InputError
from pipeline.storage import Store

SCHEMA = pa.schema([("shard", pa.string()), ("key", pa.string())])
SHARDS = "winnow.shards"
SHARDS_AT_HAND = 64
"""Shards whose keys stay in memory. A loader's worker reads one after the other, or a few at once."""


@dataclass(frozen=True, slots=True)
class KeptShard:
    """One shard of the pool.

    Attributes:
        name: as in the ledger.
        path: below the pool's root: the name without the prefix of a named source.
        url: where the run read it.
        first, stop: its row groups; none when nothing was kept.
    """

    name: str
    path: str
    url: str
    first: int
    stop: int


def load_kept(path: str, storage: Mapping[str, Any] | None = None) -> "KeptKeys":
    """Opens a `keys` export.

    Args:
        path: the file, local or any fsspec URL.
        storage: options for fsspec.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is not a `keys` export.
    """
    folder, slash, name = path.rpartition("/")
    store = Store(folder or slash or ".", dict(storage or {}))
    with store.open(name) as file:
        try:
            footer = pq.read_metadata(file)
        except pa.ArrowInvalid as error:
            raise InputError(f"{path} must be a `keys` export, got {error}") from error
    shards = (footer.metadata or {}).get(SHARDS.encode())
    if shards is None:
        raise InputError(f"{path} must be a `keys` export, got a Parquet file without {SHARDS} in its metadata")
    return KeptKeys(store, name, footer, [KeptShard(*shard) for shard in json.loads(shards)])


class KeptKeys:
    """The kept samples, by shard and key. Can be pickled, so that each worker of a loader has its own."""

    def __init__(self, store: Store, name: str, footer: pq.FileMetaData, shards: list[KeptShard]) -> None:
        self._store = store
        self._name = name
        self._footer = footer
        self._shards = shards
        self._places = {place: i for i, shard in enumerate(shards) for place in (shard.url, shard.name)}
        self._by_file: dict[str, list[int]] = defaultdict(list)
        for i, shard in enumerate(shards):
            self._by_file[shard.path.rpartition("/")[2]].append(i)
        self._at_hand: OrderedDict[int, frozenset[str]] = OrderedDict()

    def __len__(self) -> int:
        """How many samples were kept."""
        return int(self._footer.num_rows)

    def __call__(self, shard: str, key: str) -> bool:
        """Whether a sample was kept.

        Args:
            shard: the shard's name, its URL, any path that ends in its name, or a `pipe:` command with one of these.
            key: the sample's key, as in the ledger; webdataset's `__key__` is the same.

        Raises:
            InputError: no shard of the pool is called that, or more than one.
        """
        return key.removeprefix("./") in self.of_shard(shard)

    def of_shard(self, shard: str) -> frozenset[str]:
        """The kept keys of one shard. Raises as calling does."""
        number = self._places.get(shard)
        if number is None:
            number = self._places[shard] = self._find(shard)
        if number not in self._at_hand:
            self._at_hand[number] = self._read(self._shards[number])
            if len(self._at_hand) > SHARDS_AT_HAND:
                self._at_hand.popitem(last=False)
        self._at_hand.move_to_end(number)
        return self._at_hand[number]

    def _find(self, place: str) -> int:
        for word in [place, *place.removeprefix("pipe:").split()]:
            word = word.strip("'\"")
            if word in self._places:
                return self._places[word]
            matches = [i for i in self._by_file.get(word.rpartition("/")[2], []) if _ends(word, self._shards[i].path)]
            longest = max((len(self._shards[i].path) for i in matches), default=0)
            matches = [i for i in matches if len(self._shards[i].path) == longest]
            if len(matches) == 1:
                return matches[0]
            if matches:
                names = ", ".join(self._shards[i].name for i in matches)
                raise InputError(f"a shard must be told from others by its path, got {place}, which may be {names}")
        raise InputError(f"a shard must be one of the {len(self._shards)} of the pool that was curated, got {place}")

    def _read(self, shard: KeptShard) -> frozenset[str]:
        groups = list(range(shard.first, shard.stop))
        if not groups:
            return frozenset()
        with self._store.open(self._name) as file, pq.ParquetFile(file, metadata=self._footer) as table:
            return frozenset(table.read_row_groups(groups, columns=["key"], use_threads=False)["key"].to_pylist())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_at_hand": OrderedDict()}


def _ends(place: str, path: str) -> bool:
    return place == path or place.endswith(f"/{path}")
