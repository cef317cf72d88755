"""Which arrays lie beside which table, by their names alone.

    clip_retrieval    metadata/metadata_{i}.parquet, img_emb/img_emb_{i}.npy, text_emb/text_emb_{i}.npy
    datacomp          {stem}.parquet, {stem}.npz
    semdedup          sorted_clusters/cluster_{i}.npy and embeddings.npy, or embeddings.npy and paths.npy

An array that some shard has is expected of every shard, but for the tables of clip-retrieval and its image embeddings,
which always are: so a file that was lost makes its shard a damaged one and is not taken for a pool without it.
"""

import re
from collections.abc import Collection

from pipeline.pool import Format

IMAGE_ARRAY = "img_emb"
TEXT_ARRAY = "text_emb"
EMBEDDINGS = "embeddings.npy"
PATHS = "paths.npy"

_CLIP_RETRIEVAL = re.compile(r"((?:.*/)?)(?:metadata/metadata_(.+)\.parquet|(img_emb|text_emb)/\3_(.+)\.npy)")
_CLUSTER = re.compile(r"(?:.*/)?cluster_\d+\.npy")


def pair(format: Format, names: Collection[str]) -> list[tuple[str, ...]]:
    """The files of each shard, its table first, those included that are expected and not there.

    Args:
        format: `clip_retrieval` or `datacomp`.
        names: of all files; others than those of the format are passed over.
    """
    return _pair_clip_retrieval(names) if format == "clip_retrieval" else _pair_datacomp(names)


def is_sorted_cluster(name: str) -> bool:
    """Whether a file is one of SemDeDup's sorted clusters."""
    return _CLUSTER.fullmatch(name) is not None


def _pair_clip_retrieval(names: Collection[str]) -> list[tuple[str, ...]]:
    matches = [match for name in names if (match := _CLIP_RETRIEVAL.fullmatch(name))]
    shards = sorted({(match[1], match[2] or match[4]) for match in matches})
    arrays = [IMAGE_ARRAY] + [TEXT_ARRAY] * any(match[3] == TEXT_ARRAY for match in matches)
    return [
        (f"{folder}metadata/metadata_{i}.parquet", *(f"{folder}{array}/{array}_{i}.npy" for array in arrays))
        for folder, i in shards
    ]


def _pair_datacomp(names: Collection[str]) -> list[tuple[str, ...]]:
    stems = sorted({name.rpartition(".")[0] for name in names})
    with_arrays = any(name.endswith(".npz") for name in names)
    return [(f"{stem}.parquet", f"{stem}.npz") if with_arrays else (f"{stem}.parquet",) for stem in stems]
