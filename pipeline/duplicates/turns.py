"""Deciding blocks that meet, in turns: blocks are compared with each other, then each is settled, until all is told.

No process holds more than two blocks and what two bins know of their rows. Legend: as in `files`.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from operators.duplicates import Block, Groups, Heard, compare, is_over, settle
from pipeline.duplicates.files import Files, fresh_block, letter, read_block, read_letter, write_state
from pipeline.duplicates.rows import Job, Results, group_sizes, produce, split_blocks
from pipeline.run import Plan
from pipeline.shuffle import PARTITION, shuffle
from pipeline.spread import spread

Ints = NDArray[np.int64]


def decide_in_turns(plan: Plan, job: Job) -> list[pa.Table]:
    """Decides every row of the pool; gives a report of each bin."""
    workers, files = plan.run.workers, Files(job.store, job.folder)
    items = list(enumerate(plan.units))
    written = shuffle(
        items, partial(produce, job), partial(write_bins, job), partitions=job.layout.bins, workers=workers
    )
    bins = sorted(bin_ for receipt in written for bin_ in receipt["bin"].to_pylist())
    links: list[tuple[int, int]] = []
    turn, is_last = 0, False
    while not is_last:
        senders: dict[int, list[int]] = {bin_: [] for bin_ in bins}
        for bin_, told, linked in spread(partial(compare_bin, job, turn, frozenset(bins)), bins, workers=workers):
            links += [(bin_, other) for other in linked]
            for other in told:
                senders[other].append(bin_)
        inboxes = [(bin_, sorted(senders[bin_])) for bin_ in bins]
        is_last = all(list(spread(partial(settle_bin, job, turn), inboxes, workers=workers)))
        turn += 1
    joined = set().union(*spread(partial(join_groups, job), [sorted(links)], workers=1))
    asked = [(bin_, bin_ in joined) for bin_ in bins]
    reports = list(spread(partial(report_bin, job, turn), asked, workers=workers))
    job.store.remove(files.root)
    return reports


def write_bins(job: Job, table: pa.Table) -> pa.Table:
    """Writes the rows of some bins; tells which."""
    files = Files(job.store, job.folder)
    bins = pc.unique(table[PARTITION]).to_pylist()
    for bin_ in bins:
        rows = table.filter(pc.equal(table[PARTITION], bin_))
        found = {block: (members, copies) for block, members, copies in split_blocks(job, rows)}
        some, copied = next(iter(found.values()))
        none = some.take(slice(0, 0)), copied.take(np.zeros(len(copied.of_M), dtype=bool))
        blocks = [found.get(int(block), none) for block in job.layout.blocks_in(bin_)]
        members = [rows for rows, _ in blocks]
        files.write_rows(bin_, members, [copies for _, copies in blocks])
        write_state(files, bin_, 0, [fresh_block(job, rows) for rows in members])
    return pa.table({"bin": pa.array(bins, pa.int32())})


def compare_bin(job: Job, turn: int, bins: frozenset[int], bin_: int) -> tuple[int, list[int], list[int]]:
    """Compares the blocks of a bin with the higher ones that they meet.

    Returns:
        the bin, the bins that learn something, and those whose groups it links to its own.
    """
    layout, files = job.layout, Files(job.store, job.folder)
    pairs = layout.pair_P2[layout.bin_L[layout.pair_P2[:, 0]] == bin_]
    homes = layout.bin_L[pairs[:, 1]]
    letters: dict[int, list[tuple[Ints, Heard]]] = {}
    links: dict[int, list[tuple[Ints, Ints]]] = {}
    for i in np.lexsort((pairs[:, 0], pairs[:, 1], homes)):
        other = int(homes[i])
        if other not in bins:
            continue
        sides = (bin_, pairs[i]), (other, pairs[i, ::-1])
        if not any(_is_open(job, home, turn, int(pair[0])) for home, pair in sides):
            continue
        left, right = (_Side(job, home, turn, pair) for home, pair in sides)
        *heard, (left_H, right_H) = compare(left.block, right.block, job.rule)
        for side, learnt in zip((left, right), heard, strict=True):
            told_M = np.flatnonzero(learnt.told_N)
            letters.setdefault(side.bin, []).append((side.at_M[told_M], learnt.take(told_M)))
        if turn == 0 and len(left_H):
            links.setdefault(other, []).append((left.at_M[left_H], right.at_M[right_H]))
    for other, parts in letters.items():
        files.write(files.heard(other, turn, bin_), letter(*_merge(parts, len(job.rule.threshold_E))))
    for other, ends in links.items():
        left_H, right_H = map(np.concatenate, zip(*ends, strict=True))
        files.write(files.links(bin_, other), {"left_H": left_H, "right_H": right_H})
    return bin_, sorted(letters), sorted(links)


class _Side:
    """One of two blocks that meet: those of its rows that may be near the other."""

    def __init__(self, job: Job, bin_: int, turn: int, pair: Ints) -> None:
        files, place = Files(job.store, job.folder), int(job.layout.place_L[pair[0]])
        members, block = read_block(files, bin_, turn, place)
        ends = int(pair[0]), int(pair[1])
        near_M = job.layout.near_border(job.store, job.clusters, ends, members.x_ND, job.epsilon)
        self.bin = bin_
        self.at_M = near_M + files.span(bin_, place).start
        self.block = block.take(near_M)


def _is_open(job: Job, bin_: int, turn: int, block: int) -> bool:
    """Whether anything of a block has changed since it was last compared."""
    files = Files(job.store, job.folder)
    here = files.span(bin_, int(job.layout.place_L[block]))
    return bool(files.read(files.state(bin_, turn))["open_N"][here].any())


def settle_bin(job: Job, turn: int, inbox: tuple[int, Sequence[int]]) -> bool:
    """Settles the blocks of a bin after what they heard; tells whether, as far as they know, all is told."""
    bin_, senders = inbox
    files, epsilons = Files(job.store, job.folder), len(job.rule.threshold_E)
    heard = Heard.nothing(epsilons, len(files.keys(bin_)))
    for sender in senders:
        heard.add(*read_letter(files.read(files.heard(bin_, turn, sender))))
    blocks: list[Block] = []
    labels: list[Ints] = [np.zeros(0, np.int64)]
    for place in range(len(job.layout.blocks_in(bin_))):
        members, block = read_block(files, bin_, turn, place)
        here = files.span(bin_, place)
        groups = Groups.singles(len(members.key_N3)) if turn == 0 else None
        blocks.append(settle(block, heard.take(here), job.rule, groups))
        if groups:
            labels.append(groups.label_N + here.start)
    write_state(files, bin_, turn + 1, blocks)
    if turn == 0:
        files.write(files.labels(bin_), {"label_N": np.concatenate(labels)})
    return is_over(blocks, job.rule.mode)


def join_groups(job: Job, links: Sequence[tuple[int, int]]) -> set[int]:
    """Joins the groups that links connect; tells which bins have such groups.

    Holds the linked groups of the whole pool: 48 bytes each.
    """
    files = Files(job.store, job.folder)
    ends = [np.zeros((0, 4), np.int64)]  # bin and group of both ends
    for bin_, other in links:
        arrays = files.read(files.links(bin_, other))
        left_H = files.read(files.labels(bin_))["label_N"][arrays["left_H"]]
        right_H = files.read(files.labels(other))["label_N"][arrays["right_H"]]
        ends.append(np.stack([np.full_like(left_H, bin_), left_H, np.full_like(left_H, other), right_H], axis=1))
    end_H4 = np.concatenate(ends)
    group_G2, number = np.unique(end_H4.reshape(-1, 2), axis=0, return_inverse=True)
    left_H, right_H = number.reshape(-1, 2).T
    graph = coo_array((np.ones(len(left_H), bool), (left_H, right_H)), shape=(len(group_G2), len(group_G2)))
    _, part_G = connected_components(graph, directed=False)
    key_G3, size_G = np.zeros((len(group_G2), 3), np.uint64), np.zeros(len(group_G2), np.int64)
    bins = set(group_G2[:, 0].tolist())
    for bin_ in bins:
        here_G = group_G2[:, 0] == bin_
        label_N = files.read(files.labels(bin_))["label_N"]
        size_G[here_G] = group_sizes(label_N, files.copies(bin_).of_M)[group_G2[here_G, 1]]
        key_G3[here_G] = files.keys(bin_)[group_G2[here_G, 1]]
    total_G = np.bincount(part_G, weights=size_G).astype(np.int64)[part_G] if len(part_G) else size_G
    order_G = np.lexsort((*key_G3.T[::-1], part_G))
    first_G = order_G[np.searchsorted(part_G[order_G], part_G)]
    for bin_ in bins:
        here_G = group_G2[:, 0] == bin_
        arrays = {"label_G": group_G2[here_G, 1], "uid_G2": key_G3[first_G][here_G, 1:], "size_G": total_G[here_G]}
        files.write(files.joined(bin_), arrays)
    return bins


def report_bin(job: Job, turn: int, asked: tuple[int, bool]) -> pa.Table:
    """Writes what was found of a bin and tells of it."""
    bin_, is_joined = asked
    files = Files(job.store, job.folder)
    label_N = files.read(files.labels(bin_))["label_N"]
    uid_N2 = files.keys(bin_)[label_N, 1:]
    copies = files.copies(bin_)
    size_N = group_sizes(label_N, copies.of_M)
    if is_joined:
        joined = files.read(files.joined(bin_))
        at_N = np.searchsorted(joined["label_G"], label_N).clip(max=len(joined["label_G"]) - 1)
        here_M = np.flatnonzero(joined["label_G"][at_N] == label_N)
        uid_N2[here_M], size_N[here_M] = joined["uid_G2"][at_N[here_M]], joined["size_G"][at_N[here_M]]
    results = Results(job)
    for place in range(len(job.layout.blocks_in(bin_))):
        members, block = read_block(files, bin_, turn, place)
        here = files.span(bin_, place)
        ours = copies.take((here.start <= copies.of_M) & (copies.of_M < here.stop))
        ours = ours._replace(of_M=ours.of_M - here.start)
        results.add(members, ours, block, uid_N2[here], size_N[here])
    return results.write(bin_)


def _merge(parts: Sequence[tuple[Ints, Heard]], epsilons: int) -> tuple[Ints, Heard]:
    """One letter of several that may tell the same row different things."""
    at_M, place = np.unique(np.concatenate([at for at, _ in parts]), return_inverse=True)
    merged = Heard.nothing(epsilons, len(at_M))
    start = 0
    for at, heard in parts:
        merged.add(place[start : start + len(at)], heard)
        start += len(at)
    return at_M, merged
