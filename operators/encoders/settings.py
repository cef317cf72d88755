"""What the `models:` section of a config may say. Imports no model library, so that a config is read in no time."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["auto", "float32", "bfloat16"]
"""`auto` is bfloat16 autocast on a GPU and float32 on a CPU."""

Decode = Literal["exact", "fast"]
"""`exact` equals the model's reference transform bit for bit; `fast` lets JPEGs be decoded at a reduced DCT scale."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Model(_Strict):
    @property
    def modalities(self) -> frozenset[str]:
        """What the model embeds: images, unless it says more."""
        return frozenset({"image"})


class Normalization(_Strict):
    """Replaces parts of open_clip's image transform, for weights trained with another than their name implies."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None


class _WeightedSettings(_Model):
    """What every model with weights has.

    Attributes:
        name: the architecture.
        weights: a file or export folder (local or any fsspec URL), `random`, or `hub`. Nothing is ever unpickled.
        precision: `auto` is bfloat16 where the machine that starts the run has a GPU, else float32.
        batch_size: rows in a forward pass; the last one is padded, so that its shape never changes.
        seed: of `random` weights; without effect on others.
        storage: options for fsspec to open the weights. Default: those of a workspace in the same kind of store.
    """

    name: str = Field(min_length=1)
    weights: str = Field(min_length=1)
    storage: dict[str, Any] | None = Field(default=None, repr=False, exclude=True)
    precision: Precision = "auto"
    batch_size: int = Field(default=32, ge=1)
    decode: Decode = "exact"
    seed: int = Field(default=0, ge=0)

    def __hash__(self) -> int:
        return hash((type(self), self.name, self.weights))  # `storage` has no hash


class OpenClipSettings(_WeightedSettings):
    """A CLIP with both towers.

    `name` is one of open_clip's, a JSON config (ending in `.json`), or `hf-hub:owner/repo` with `weights: hub`.
    `weights` may also be one of open_clip's pretrained tags. OpenAI's and DFN's need the `-quickgelu` names.
    """

    library: Literal["open_clip"]
    preprocess: Normalization = Normalization()

    @property
    def modalities(self) -> frozenset[str]:
        """Both towers."""
        return frozenset({"image", "text"})


class TimmSettings(_WeightedSettings):
    """An image tower of timm, pooled and without its classifier. `image_size` replaces the size it was trained at."""

    library: Literal["timm"]
    image_size: int | None = Field(default=None, ge=1)


class PixelsSettings(_Model):
    """The pixels themselves: resized to `size` x `size` and flattened.

    Attributes:
        size: in pixels.
        colours: `rgb` keeps the levels. `ycbcr` embeds brightness about the image's own mean and, at half their weight,
            the colour differences: less of what recompressing changes, more of what tells pictures apart.
        decode: as for every model.
    """

    library: Literal["pixels"]
    size: int = Field(default=16, ge=1, le=512)
    colours: Literal["rgb", "ycbcr"] = "rgb"
    decode: Decode = "exact"


class StoredSettings(_Model):
    """Embeddings that a pool brings: which of its arrays are those of the images, and which those of the captions."""

    library: Literal["stored"]
    image: str | None = Field(default=None, min_length=1)
    text: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "StoredSettings":
        if self.image is None and self.text is None:
            raise ValueError("needs at least one of image and text: names of arrays of the pool")
        return self

    @property
    def modalities(self) -> frozenset[str]:
        """Those of the arrays that are named."""
        return frozenset(modality for modality in ("image", "text") if self.array(modality) is not None)

    def array(self, modality: str) -> str | None:
        """The name of an array of the pool."""
        return self.image if modality == "image" else self.text


ModelSettings = Annotated[
    OpenClipSettings | TimmSettings | PixelsSettings | StoredSettings, Field(discriminator="library")
]
