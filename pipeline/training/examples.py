"""Which samples are trained on: the kept ones of one run or several, as far as they have an image and a caption.

The driver learns how many there are in each shard and nothing of single rows; the rows are found where a shard is
decoded, by the same rule.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from operators.errors import ConfigError, InputError
from operators.uids import split_uids
from pipeline.artifact import read_columns
from pipeline.columns import booleans, uid_rows
from pipeline.embed import make
from pipeline.limits import check_limits
from pipeline.listing import check_source, list_shards
from pipeline.pool import Pool, Shard
from pipeline.progress import Progress
from pipeline.record import open_run
from pipeline.run import Run
from pipeline.spread import spread
from pipeline.steps.unique_uid import UniqueUid
from pipeline.storage import Store
from pipeline.training.captions import Labels, read_labels
from pipeline.training.settings import PLACE, Data, Training

_SHOWN = 3
"""Damaged shards that are named in a line."""


@dataclass(frozen=True)
class Portion:
    """The kept rows of a run, as a part of a training set.

    Attributes:
        run: with its samples and verdicts.
        weight: of each sample, on top of those of the pool's sources.
        labels: how classes become captions; None where samples have their own.
    """

    run: Run
    weight: float = 1.0
    labels: Labels | None = None

    @property
    def identity(self) -> Any:
        """All that its samples depend on, JSON-able."""
        entering = self.run.entering
        assert entering is not None, "a portion's run has verdicts"
        labels = self.labels and [self.labels.field, self.labels.classes, self.labels.templates]
        sources = [source.weight for source in self.run.pool.sources]
        return [self.run.samples.digest, entering.digest, self.weight, sources, labels]


@dataclass(frozen=True)
class Piece:
    """The usable rows of one shard.

    Attributes:
        name: unique in the training set.
        store: the workspace that holds the two parts.
        pool, shard: where the images are.
        samples, verdicts: paths of the shard's parts.
        portion: index of its portion.
        weight: of each row.
        labels: as the portion's.
        rows: how many are usable.
        classes: which of the labels' classes they are of: a bit each, as `np.packbits` writes them.
    """

    name: str
    store: Store
    pool: Pool
    shard: Shard
    samples: str
    verdicts: str
    portion: int
    weight: float
    labels: Labels | None
    rows: int = 0
    classes: bytes = b""


class Usable(NamedTuple):
    """The usable rows of a shard, in the order of rows.

    Attributes:
        rows: their numbers in the shard.
        high_N, low_N: halves of their uids.
        captions: their own texts, or the numbers of their classes.
        missing: kept rows without a caption or a class.
    """

    rows: list[int]
    high_N: NDArray[np.uint64]
    low_N: NDArray[np.uint64]
    captions: list[str] | list[int]
    missing: int


@dataclass(frozen=True)
class Examples:
    """A training set.

    Attributes:
        pieces: shards that have usable rows.
        missing: kept samples that were left out because they have no caption.
        rejected: reason -> how many samples could not be used when they were read.
        damaged: shard -> why it could not be read to its end.
    """

    pieces: tuple[Piece, ...]
    missing: int
    rejected: Mapping[str, int]
    damaged: Mapping[str, str]

    @property
    def rows(self) -> int:
        """Usable samples."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def epoch(self) -> float:
        """Samples of an epoch, on average: weights are multiplicities."""
        return sum(piece.rows * piece.weight for piece in self.pieces)


def open_portions(config: Training, *, workers: int, progress: Progress) -> list[Portion]:
    """The runs behind a config's data: a pool is read into the training's workspace, a workspace's run is opened.

    Raises:
        UserError, LimitExceeded: of a pool as in a curation; a workspace without a finished run; files of captions;
            different shards of the same name.
    """
    portions = [_list(config, data, workers, progress) for data in config.data]
    _check_names(portions)
    for data, portion in zip(config.data, portions, strict=True):
        if data.pool is not None:
            make(portion.run, [])
            check_limits(data.pool, portion.run.samples, portion.run.add_verdicts(UniqueUid().run(portion.run)))
    return portions


def find_examples(portions: Sequence[Portion], *, workers: int) -> Examples:
    """Counts the usable samples of every shard.

    Raises:
        InputError: there are none, all captions are one and the same, or a class is in no list.
    """
    pieces = [piece for i, portion in enumerate(portions) for piece in _pieces(i, portion)]
    found = dict(spread(_survey, list(enumerate(pieces)), workers=workers))
    usable = [
        replace(piece, rows=found[i].rows, classes=found[i].classes) for i, piece in enumerate(pieces) if found[i].rows
    ]
    missing = sum(survey.missing for survey in found.values())
    if not usable:
        fields = dict.fromkeys(
            f", or a class in captions.field {piece.labels.field}" for piece in pieces if piece.labels
        )
        rule = f"must hold samples with a caption{''.join(fields)}"
        raise InputError(f"data {rule}, got none ({missing} were kept and have no caption)")
    captions = set().union(*(survey.captions for survey in found.values()))
    if len(captions) == 1:
        raise InputError(
            f"captions must differ, or a contrastive loss learns nothing, got {next(iter(captions))!r} for all "
            f"{sum(piece.rows for piece in usable)} samples"
        )
    runs = [portion.run for portion in portions]
    rejected = sum((Counter(run.verdicts[0].totals("dropped")) for run in runs), Counter())
    damaged = {
        part.shard: part.notes["damage"] for run in runs for part in run.samples.parts if part.notes.get("damage")
    }
    return Examples(tuple(usable), missing, dict(rejected.most_common()), damaged)


def left_out(missing: int, rejected: Mapping[str, int], damaged: Mapping[str, str]) -> list[str]:
    """What is not trained on, in lines; arguments as in `Examples`."""
    lines = [f"{missing:,} kept samples without a caption"] if missing else []
    if rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejected.items())
        lines.append(f"{sum(rejected.values()):,} rejected ({reasons})")
    if damaged:
        shown = ", ".join(f"{shard} ({why})" for shard, why in list(damaged.items())[:_SHOWN])
        more = f" and {len(damaged) - _SHOWN:,} more" if len(damaged) > _SHOWN else ""
        lines.append(f"what could not be read of damaged shards: {shown}{more}")
    return lines


def read_usable(piece: Piece) -> Usable:
    """The usable rows of a shard: kept by the last verdict, with a caption or a class.

    Raises:
        InputError: a class that is in no list.
    """
    kept_N = booleans(read_columns(piece.store, piece.verdicts, ["kept"])["kept"])
    text = "caption" if piece.labels is None else "metadata"
    table = read_columns(piece.store, piece.samples, ["uid", "row", text]).filter(kept_N)
    captions: list[Any] = table[text].to_pylist()
    if piece.labels is not None:
        captions = piece.labels.numbers(piece.pool, piece.shard, table["row"].to_pylist(), captions)
        present_N = np.asarray([number is not None for number in captions], dtype=bool)
    else:
        present_N = booleans(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table[text])), 0))
    sound = table.filter(present_N)
    high_N, low_N = split_uids(uid_rows(sound["uid"]))
    usable = [caption for caption, present in zip(captions, present_N, strict=True) if present]
    return Usable(sound["row"].to_pylist(), high_N, low_N, usable, len(present_N) - len(usable))


class _Survey(NamedTuple):
    rows: int
    missing: int
    captions: frozenset[str]  # two of them at most: enough to know whether all are equal
    classes: bytes  # as of a piece


def _survey(item: tuple[int, Piece]) -> tuple[int, _Survey]:
    index, piece = item
    usable = read_usable(piece)
    captions: Sequence[Any] = usable.captions
    classes = b""
    if piece.labels is not None:
        present_K = np.zeros(len(piece.labels.classes), dtype=bool)
        present_K[np.asarray(captions, dtype=np.int64)] = True
        classes = np.packbits(present_K).tobytes()
        names = [piece.labels.classes[int(number)] for number in np.flatnonzero(present_K)]
        captions = [piece.labels.templates[0].replace(PLACE, name) for name in names]  # of one class all say the same
    return index, _Survey(len(usable.rows), usable.missing, frozenset(_first_two(map(str, captions))), classes)


def _first_two(values: Iterable[str]) -> list[str]:
    found: list[str] = []
    for value in values:
        if value not in found:
            found.append(value)
            if len(found) == 2:
                break
    return found


def _pieces(index: int, portion: Portion) -> list[Piece]:
    run = portion.run
    assert run.entering is not None
    return [
        Piece(
            name=f"{index}:{shard.name}",
            store=run.store,
            pool=run.pool,
            shard=shard,
            samples=samples.path,
            verdicts=verdicts.path,
            portion=index,
            weight=portion.weight * run.pool.sources[shard.source].weight,
            labels=portion.labels,
        )
        for shard, samples, verdicts in zip(run.shards, run.samples.parts, run.entering.parts, strict=True)
    ]


def _list(config: Training, data: Data, workers: int, progress: Progress) -> Portion:
    """A portion of a finished run, or of one that is yet to read a pool."""
    labels = read_labels(data.captions) if data.captions else None
    if labels is not None and data.pool is not None:  # their captions are made
        data = data.model_copy(update={"pool": data.pool.without_text})
    if data.workspace is not None:
        store = Store(data.workspace, data.storage)
        run, _ = open_run(store, workers=workers, progress=progress, snapshot=data.snapshot)
        if not all(source.has_images for source in run.pool.sources):
            raise InputError(f"data must be a workspace of a pool with images, got {store.url}")
        return Portion(run, data.weight, labels)
    assert data.pool is not None
    shards = list_shards(data.pool)
    for index, source in enumerate(data.pool.sources):
        check_source(source, [shard for shard in shards if shard.source == index])
    run = Run(config.store, data.pool, shards, config.seed, {}, workers, 1, progress)
    return Portion(run, data.weight, labels)


def _check_names(portions: Sequence[Portion]) -> None:
    """Different samples of shards of one name could share a uid, and with it all that is drawn."""
    known: dict[str, Shard] = {}
    for portion in portions:
        for shard in portion.run.shards:
            other = known.setdefault(shard.name, shard)
            if other.fingerprint != shard.fingerprint:
                raise ConfigError(
                    f"shard names must be unique over data, got {shard.name!r} from {other.url} and {shard.url}: "
                    "give each source a name"
                )
