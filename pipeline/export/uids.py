"""DataComp's subset file: a `.npy` array of dtype `u8,u8`, the high and low 64 bits of every kept uid, sorted.

Unsorted it breaks its consumers silently, since they search it by bisection. One task sorts all: 16 bytes a sample.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from operators.uids import UID_BYTES, UID_PAIR, split_uids
from pipeline.columns import uid_rows
from pipeline.export.settings import UidsExport
from pipeline.export.slices import Group, kept_slices, num_rows, read_kept
from pipeline.export.target import Piece, open_target
from pipeline.run import Run
from pipeline.storage import Store

VERSION = 1

_BLOCK_ROWS = 1 << 20


def plan(run: Run, settings: UidsExport) -> list[list[Piece]]:
    """The one file."""
    slices = kept_slices(run)
    return [[Piece((open_target(settings).file,), num_rows(slices), partial(write_uids, run.store, slices))]]


def write_uids(store: Store, group: Group, paths: Sequence[Path]) -> None:
    """Writes the sorted uids of a group.

    Args:
        store: the workspace.
        group: whose uids.
        paths: of the one file.
    """
    # Byte strings of one length compare as the pairs do, high half first, and sort in place.
    uids_N = np.empty(num_rows(group), dtype=f"S{UID_BYTES}")
    start = 0
    for piece in group:
        uids_N[start : start + len(piece)] = uid_rows(read_kept(store, piece, ["uid"])["uid"]).view(uids_N.dtype)
        start += len(piece)
    uids_N.sort()
    (path,) = paths
    with path.open("wb") as file:
        header = {"descr": UID_PAIR.descr, "fortran_order": False, "shape": (len(uids_N),)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(uids_N), _BLOCK_ROWS):
            block = uids_N[start : start + _BLOCK_ROWS].view(f"V{UID_BYTES}")
            pairs = np.empty(len(block), dtype=UID_PAIR)
            pairs["f0"], pairs["f1"] = split_uids(block)
            file.write(pairs.tobytes())
