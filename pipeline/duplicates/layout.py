"""How a pool's clusters are cut into blocks, which blocks meet, and which travel together.

Legend: K clusters, L blocks, S parts of a split cluster, P pairs, D dimensions.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from operators.borders import near_border
from operators.hashing import keyed_hash
from pipeline.integrity import read_arrays
from pipeline.spread import balanced
from pipeline.storage import Store

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Split:
    """A giant cluster, cut by a k-means of its own.

    Attributes:
        path: of its centroids in the workspace, float64, S x D.
        pieces_S: int64, how many blocks each part is cut into by the hash of its uids: more than one where k-means
            could not cut any further, as when all rows are alike.
    """

    path: str
    pieces_S: Ints


@dataclass(frozen=True)
class Layout:
    """Every block of a pool. A cluster is one block unless it is split.

    Attributes:
        first_K: int64, the first block of each cluster.
        cluster_L: int64, the cluster of each block.
        part_L: int64, its part of the cluster, 0 where that is not split.
        bin_L: int64, the bin that it travels in.
        place_L: int64, its place among the blocks of its bin.
        pair_P2: int64, blocks of which rows are compared with each other, the lower one first.
        bins: how many.
        splits: by cluster.
    """

    first_K: Ints
    cluster_L: Ints
    part_L: Ints
    bin_L: Ints
    place_L: Ints
    pair_P2: Ints
    bins: int
    splits: Mapping[int, Split]

    def blocks_of(self, store: Store, cluster_N: Ints, x_ND: NDArray[np.float16], uids: tuple[Words, Words]) -> Ints:
        """The block of each row.

        Args:
            store: the workspace.
            cluster_N: of each row.
            x_ND: float16, its embedding.
            uids: the high and low halves.
        """
        block_N = self.first_K[cluster_N]
        for cluster, split in self.splits.items():
            from operators.certified import assign  # imports torch; most pools have no giant

            here_M = np.flatnonzero(cluster_N == cluster)
            if len(here_M):
                part_M, _ = assign(x_ND[here_M], read_centroids(store, split.path))
                first_S = np.cumsum(split.pieces_S) - split.pieces_S
                hash_M = keyed_hash(uids[0][here_M], uids[1][here_M], 0, "piece")
                block_N[here_M] += first_S[part_M] + (hash_M % split.pieces_S[part_M].astype(np.uint64)).astype(int)
        return block_N

    def blocks_in(self, bin_: int) -> Ints:
        """The blocks of a bin, in their places."""
        return np.flatnonzero(self.bin_L == bin_)

    def near_border(
        self, store: Store, clusters: str, pair: tuple[int, int], x_ND: NDArray[np.float16], epsilon: float
    ) -> Ints:
        """Positions of those rows of the pair's first block that may be near some row of its second.

        Args:
            store: the workspace.
            clusters: path of the centroids of all clusters.
            pair: two blocks that meet.
            x_ND: float16, rows of the first.
            epsilon: the largest that counts.
        """
        own, other = (int(self.cluster_L[block]) for block in pair)
        path, ids = clusters, (own, other)
        if own == other:
            path, ids = self.splits[own].path, (int(self.part_L[pair[0]]), int(self.part_L[pair[1]]))
        if ids[0] == ids[1]:
            return np.arange(len(x_ND))
        centroids_KD = read_centroids(store, path)
        return np.flatnonzero(near_border(x_ND, centroids_KD[ids[0]], centroids_KD[ids[1]], epsilon))


def lay_out(
    sizes_K: Ints,
    splits: Mapping[int, tuple[Split, Ints]],
    neighbours_P2: Ints,
    rows_per_bin: int,
) -> Layout:
    """Cuts clusters into blocks and deals them to bins.

    Args:
        sizes_K: int64, rows of each cluster.
        splits: by cluster: the split, and the rows of each part.
        neighbours_P2: int64, clusters that are compared with each other.
        rows_per_bin: about how many rows travel together, at most, unless one block alone has more.
    """
    blocks_K = np.ones(len(sizes_K), np.int64)
    for cluster, (split, _) in splits.items():
        blocks_K[cluster] = split.pieces_S.sum()
    first_K = np.cumsum(blocks_K) - blocks_K
    cluster_L = np.repeat(np.arange(len(sizes_K)), blocks_K)
    part_L, size_L = np.zeros(len(cluster_L), np.int64), sizes_K[cluster_L]
    for cluster, (split, sizes_S) in splits.items():
        blocks = slice(first_K[cluster], first_K[cluster] + blocks_K[cluster])
        part_L[blocks] = np.repeat(np.arange(len(split.pieces_S)), split.pieces_S)
        size_L[blocks] = np.repeat(-(-sizes_S // split.pieces_S), split.pieces_S)
    bins = -(-int(size_L.sum()) // rows_per_bin) or 1
    bin_L, place_L = np.zeros((2, len(cluster_L)), np.int64)
    dealt = balanced([(block, int(size)) for block, size in enumerate(size_L)], bins)
    for number, blocks_in in enumerate(dealt):
        bin_L[blocks_in] = number
        place_L[np.sort(blocks_in)] = np.arange(len(blocks_in))
    pair_P2 = _meetings(first_K, blocks_K, neighbours_P2, list(splits))
    given = {cluster: split for cluster, (split, _) in splits.items()}
    return Layout(first_K, cluster_L, part_L, bin_L, place_L, pair_P2, len(dealt), given)


def meeting_new(new_K: Ints, neighbours_P2: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Which clusters are to be compared where the verdicts about some rows stand.

    Args:
        new_K: int64, new rows of each cluster.
        neighbours_P2: int64, clusters that are compared with each other.

    Returns:
        searched_K, the clusters that hold new rows and those that are compared with them; and the pairs of which one
        holds new rows.
    """
    searched_K = new_K > 0
    pairs_P2 = neighbours_P2[searched_K[neighbours_P2].any(axis=1)]
    searched_K[pairs_P2] = True
    return searched_K, pairs_P2


def cut_giants(sizes_S: Ints, largest: int) -> Ints:
    """pieces_S: into how many blocks of at most about `largest` rows each part is cut."""
    return np.maximum(-(-sizes_S // largest), 1)


@functools.lru_cache(maxsize=4)
def read_centroids(store: Store, path: str) -> NDArray[np.float64]:
    """The centroids in a `.npz`; each worker reads them once."""
    return read_arrays(store, path)["centroids_KD"]


def _meetings(first_K: Ints, blocks_K: Ints, neighbours_P2: Ints, split: Sequence[int]) -> Ints:
    """Pairs of blocks: all of one cluster, and all of one with all of a neighbouring one."""
    pairs = [np.zeros((0, 2), np.int64)]
    for cluster in split:
        lower, higher = np.triu_indices(blocks_K[cluster], 1)
        pairs.append(np.stack([lower, higher], axis=1) + first_K[cluster])
    whole = (blocks_K[neighbours_P2] == 1).all(axis=1)
    pairs.append(first_K[neighbours_P2[whole]])
    for one, other in neighbours_P2[~whole]:
        grid = np.indices((blocks_K[one], blocks_K[other])).reshape(2, -1).T
        pairs.append(grid + first_K[[one, other]])
    return np.concatenate(pairs)
