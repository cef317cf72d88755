"""What the `models:` section of a config may say. Imports no model library, so that a config is read in no time."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["auto", "float32", "bfloat16"]
"""`auto` is bfloat16 autocast on a GPU and float32 on a CPU."""

Decode = Literal["exact", "fast"]
"""`exact` equals the model's reference transform bit for bit; `fast` lets JPEGs be decoded at a reduced DCT scale."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Normalization(_Strict):
    """Replaces parts of open_clip's image transform, for weights trained with another than their name implies."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None


class _WeightedSettings(_Strict):
    """What every model with weights has.

    Attributes:
        name: the architecture.
        weights: a file or export folder (local or any fsspec URL), `random`, or `hub`. Nothing is ever unpickled.
        precision: `auto` is bfloat16 where the machine that starts the run has a GPU, else float32.
        batch_size: rows in a forward pass; the last one is padded, so that its shape never changes.
        seed: of `random` weights; without effect on others.
    """

    name: str = Field(min_length=1)
    weights: str = Field(min_length=1)
    precision: Precision = "auto"
    batch_size: int = Field(default=32, ge=1)
    decode: Decode = "exact"
    seed: int = Field(default=0, ge=0)


class OpenClipSettings(_WeightedSettings):
    """A CLIP with both towers.

    `name` is one of open_clip's, a JSON config (ending in `.json`), or `hf-hub:owner/repo` with `weights: hub`.
    `weights` may also be one of open_clip's pretrained tags. OpenAI's and DFN's need the `-quickgelu` names.
    """

    library: Literal["open_clip"]
    preprocess: Normalization = Normalization()


class TimmSettings(_WeightedSettings):
    """An image tower of timm, pooled and without its classifier. `image_size` replaces the size it was trained at."""

    library: Literal["timm"]
    image_size: int | None = Field(default=None, ge=1)


class PixelsSettings(_Strict):
    """The pixels themselves: resized to `size` x `size` and flattened."""

    library: Literal["pixels"]
    size: int = Field(default=16, ge=1, le=512)
    decode: Decode = "exact"


ModelSettings = Annotated[OpenClipSettings | TimmSettings | PixelsSettings, Field(discriminator="library")]
