"""The `export:` section of a config."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Export(BaseModel):
    """What every export has.

    Attributes:
        path: a folder or file, local or any fsspec URL; relative paths are relative to the working folder.
        storage: options for fsspec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    path: str = Field(min_length=1)
    storage: dict[str, Any] = Field(default_factory=dict, repr=False)


class WebdatasetExport(_Export):
    """A folder of tars with the original bytes, in DataComp's resharded layout.

    Attributes:
        max_samples_per_shard: every tar has this many, but for the last and those that would be too large.
        max_shard_bytes: size of a tar, kept to unless a single sample is larger.
    """

    format: Literal["webdataset"]
    max_samples_per_shard: int = Field(default=10_000, ge=1)
    max_shard_bytes: int = Field(default=3_000_000_000, ge=1)


class ParquetExport(_Export):
    """A folder of Parquet files: where every kept sample lies, with its caption, size, metadata and scores."""

    format: Literal["parquet"]


class ClipRetrievalExport(_Export):
    """A clip-retrieval folder: unit float16 embeddings and metadata of the kept samples, row by row.

    Attributes:
        model: whose embeddings.
        rows_per_file: every file has this many, but for the last.
    """

    format: Literal["clip_retrieval"]
    model: str
    rows_per_file: int = Field(default=1_000_000, ge=1)


class SemdedupExport(_Export):
    """SemDeDup's sorted clusters with the embeddings that their rows point into.

    Attributes:
        model: whose image embeddings.
        step: whose clusters: the name of a step that clusters the pool; `<sweep>.k<k>` for one of a sweep's, and
            `<intersection>.<step>` for a step inside an intersection.
    """

    format: Literal["semdedup"]
    model: str
    step: str


class UidsExport(_Export):
    """DataComp's subset file: a `.npy` of dtype `u8,u8`, sorted."""

    format: Literal["uids"]


class KeysExport(_Export):
    """The kept keys of every shard in one Parquet file, for a webdataset loader that filters while loading."""

    format: Literal["keys"]


Export = Annotated[
    WebdatasetExport | ParquetExport | ClipRetrievalExport | SemdedupExport | UidsExport | KeysExport,
    Field(discriminator="format"),
]


def needs_images(settings: Export) -> bool:
    """Whether the format holds the bytes of images, which a pool of embeddings does not have."""
    return settings.format == "webdataset"
