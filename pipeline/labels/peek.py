"""A first look at what a set says of its samples, before any work.

Whether every label fits is known once the set has been read. That may be hours later, and what is usually wrong, a
field that is none or a list of other classes, shows at once.
"""

from collections.abc import Iterator, Sequence

from operators.errors import InputError
from pipeline.labels.fields import MEMBER_FIELDS, parse_member
from pipeline.labels.numbers import ClassNames, Place
from pipeline.pool import Pool, Shard, suggest
from pipeline.readers import RawSample, read_shard

_SAMPLES = 10_000
_BYTES = 32 * 2**20
"""What is read of a shard at most."""


def check_field(
    pool: Pool, shards: Sequence[Shard], field: str, classes: Sequence[str] | None, key: str = "label_field"
) -> None:
    """Looks at samples of the first shard and of the last, which holds the last classes of a sorted set.

    Args:
        pool: the set.
        shards: of it.
        field: that holds a class or a group: see `pipeline.labels.fields`.
        classes: that its values must be of; None where any will do.
        key: of the setting that names the field.

    Raises:
        InputError: no sample has the field, or one is of no class.
    """
    names = None if classes is None else ClassNames(tuple(classes))
    known: set[str] = set()
    seen = found = 0
    for shard in dict.fromkeys((shards[0], shards[-1])):
        has_members = field in MEMBER_FIELDS and pool.sources[shard.source].format == "webdataset"
        for sample in _first(pool, shard, members=has_members):
            fields = dict(sample.metadata or {})
            if has_members and field in sample.members:
                fields[field] = parse_member(sample, field, shard)
            known |= fields.keys()
            seen += 1
            if fields.get(field) is None:
                continue
            found += 1
            if names is not None:
                names.number(fields[field], Place(shard.name, sample.key, f"{key} {field}"))
    if seen and not found:
        there = ", ".join(sorted(known)) or "none"
        raise InputError(f"{key} must be a field of the samples ({there}), got {field!r}{suggest(field, known)}")


def _first(pool: Pool, shard: Shard, *, members: bool) -> Iterator[RawSample]:
    """The first samples of a shard, as far as they can be read."""
    size = 0
    for sample in read_shard(pool, shard, rows=range(_SAMPLES), members=members):
        if isinstance(sample, RawSample) and sample.reason is None:
            yield sample
            size += len(sample.image)
            if size > _BYTES:
                return
