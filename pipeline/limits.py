"""The limits that stop a run before anything downstream of reading begins."""

from operators.errors import InputError, LimitExceeded
from pipeline.artifact import Artifact
from pipeline.parts import Part
from pipeline.pool import Pool

_WORST = 3


def check_limits(pool: Pool, samples: Artifact, judged: Artifact, name: str = "the pool") -> None:
    """Checks the damaged shards and the rejects of a pool, or of a reference set.

    Args:
        pool: its limits.
        samples: with the damage in its parts' notes.
        judged: whose rows that are not kept are the rejects: the `unique_uid` verdicts, or `samples` itself.
        name: of what has no sample at all, for the message.

    Raises:
        LimitExceeded: names the limit, the share found, how to allow it, and the worst shards.
        InputError: there is no sample at all.
    """
    damaged = [part for part in samples.parts if part.notes.get("damage")]
    worst = "; ".join(f"{part.shard} {part.notes['damage']}: {part.notes['message']}" for part in damaged[:_WORST])
    if len(damaged) > max(1, pool.max_damaged_fraction * len(samples.parts)):
        raise LimitExceeded(
            f"at most {pool.max_damaged_fraction:.2%} of the {len(samples.parts)} shards may be damaged "
            f"(pool.max_damaged_fraction), got {len(damaged)}: {worst}"
        )
    if samples.rows == 0:
        why = f" ({worst})" if damaged else ""
        raise InputError(f"{name} must have at least one sample, got none in {len(samples.parts)} shards{why}")
    rejected = sum(map(_rejected, judged.parts))
    if rejected > pool.max_reject_fraction * samples.rows:
        ranked = sorted(judged.parts, key=lambda part: (-_rejected(part), part.shard))
        reasons = ", ".join(f"{reason} {count}" for reason, count in _reasons(judged).items())
        raise LimitExceeded(
            f"at most {pool.max_reject_fraction:.2%} of the {samples.rows} samples may be rejected "
            f"(pool.max_reject_fraction), got {rejected} ({rejected / samples.rows:.2%}): {reasons}; "
            f"worst shards: {_describe(ranked)}"
        )
    excessive = [part for part in judged.parts if _rejected(part) > pool.max_shard_reject_fraction * part.rows]
    if excessive:
        raise LimitExceeded(
            f"at most {pool.max_shard_reject_fraction:.2%} of a shard's samples may be rejected "
            f"(pool.max_shard_reject_fraction), got more in {len(excessive)} shards: {_describe(excessive)}"
        )


def _reasons(judged: Artifact) -> dict[str, int]:
    return judged.totals("dropped") or judged.totals("rejected")


def _rejected(part: Part) -> int:
    return part.counts["in"] - part.counts["kept"]


def _describe(parts: list[Part]) -> str:
    return ", ".join(f"{part.shard} {_rejected(part)} of {part.rows}" for part in parts[:_WORST])
