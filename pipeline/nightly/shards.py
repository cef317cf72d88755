"""What of a pool is new since a snapshot, what is no longer what it was, and what is gone.

A shard is what its part of `samples` is named by: name, size, ETag or time of modification, and how it is read. So a
shard that was renamed is gone under one name and new under another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from operators.errors import LimitExceeded
from pipeline.embed import samples_id, shards_read
from pipeline.manifests import read_recorded
from pipeline.nightly.settings import NightlySettings
from pipeline.pool import Pool, Shard
from pipeline.snapshots import Snapshot
from pipeline.storage import Store

_NAMED = 5


@dataclass(frozen=True)
class Shards:
    """The shards of a night.

    Attributes:
        used: those that it is made from, in the order of their names.
        new: names of those that no snapshot before it has, or has with another content.
        changed: names of those whose content is another one than the snapshot's, whatever becomes of them.
        vanished: names of those that the snapshot has and the pool has not.
        left_out: the changed ones that are not used, by name; which content that is, so that it does not change again.
    """

    used: Sequence[Shard]
    new: Sequence[str] = ()
    changed: Sequence[str] = ()
    vanished: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def differ(self) -> bool:
        """Whether the snapshot has other shards."""
        return bool(self.new or self.changed or self.vanished)

    def check(self, settings: NightlySettings, snapshot: int) -> None:
        """Raises LimitExceeded, naming shards and settings, where what was found is to stop the night."""
        ways = (
            ("changed", self.changed, "leave_out (their samples leave the set) or as_new (they are read again)"),
            ("vanished", self.vanished, "leave_out (their samples leave the set)"),
        )
        stopped = [
            f"no shard may have {kind} since snapshot {snapshot} (nightly.{kind}), got {len(names)}: "
            f"{in_short(names)}; restore them, or set nightly.{kind} to {way}"
            for kind, names, way in ways
            if names and getattr(settings, kind) == "stop"
        ]
        if stopped:
            raise LimitExceeded("\n".join(stopped))


def compare_shards(
    pool: Pool,
    shards: Sequence[Shard],
    known: Mapping[str, str],
    settings: NightlySettings,
    left_out: Mapping[str, str],
) -> Shards:
    """Compares the listing of a pool with what a snapshot read.

    Args:
        pool: how shards are read.
        shards: that are there, in the order of their names.
        known: of the snapshot: `known_shards`.
        settings: what to do about shards that changed.
        left_out: of the snapshot, as `Shards.left_out`.
    """
    ids = {shard.name: samples_id(pool, shard) for shard in shards}
    changed, out = [], {}
    for name, own in ids.items():
        differs = known.get(name, own) != own or left_out.get(name, own) != own
        if not differs and name not in left_out:
            continue
        if differs or settings.changed == "as_new":
            changed.append(name)
        if settings.changed != "as_new":
            out[name] = own
    used = [shard for shard in shards if shard.name not in out]
    new = [shard.name for shard in used if known.get(shard.name) != ids[shard.name]]
    vanished = sorted(known.keys() - ids.keys())
    return Shards(used, new, changed, vanished, out)


def known_shards(store: Store, snapshot: Snapshot, there: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """What a snapshot read: shard -> id of its part of `samples`, as `pipeline.embed.shards_read` has it.

    Raises:
        WorkspaceError: its manifest is not there any more.
        DamagedError: it is not what was written.
    """
    return shards_read(read_recorded(store, snapshot["artifacts"]["samples"]), there)


def in_short(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
