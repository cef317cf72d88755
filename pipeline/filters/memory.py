"""How much a filter may learn from: all of it lies in the memory of one task, on one node."""

from operators.errors import InputError
from pipeline.placement import most_memory

MOST_BYTES = 32 * 2**30
"""Whatever the node has: more would take for ever to learn from in one process."""
_SHARE = 0.5
"""Of a node's memory; the rest is for the network, for what is in flight, and for the other workers."""


def check_room(name: str, size: int, what: str, advice: str) -> None:
    """Refuses, before any of it is read, what a training could not hold.

    Args:
        name: of the training.
        size: bytes that it will hold at once.
        what: what takes them: `5,000 images of 64 x 64 pixels`.
        advice: what to change.

    Raises:
        InputError: it is more than a node can spare, or than makes sense.
    """
    there = most_memory()
    most = min(MOST_BYTES, int(_SHARE * there)) if there else MOST_BYTES
    if size > most:
        why = "half the memory of the largest node" if most < MOST_BYTES else "whatever the machine"
        rule = f"{name} must learn from at most {most / 2**30:.1f} GiB in all ({why})"
        raise InputError(f"{rule}, got {size / 2**30:.1f} GiB: {what}; {advice}")
