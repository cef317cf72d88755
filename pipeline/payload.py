"""How our own objects travel inside Ray Data rows: pickled, because both ends are this program.

The one place of ours that unpickles: what a task of this run has packed, on its way to another. What a user brings
(members, tables, weights, artifacts) never comes this way; nor does Arrow unpickle it: see
`pipeline.readers.columns.runs_code`.
"""

import pickle
from typing import Any


def pack(value: Any) -> bytes:
    """An object of ours as bytes."""
    return pickle.dumps(value, protocol=5)


def unpack(data: bytes) -> Any:
    """The object that `pack` was given, in another process of the same run."""
    return pickle.loads(data)  # noqa: S301
