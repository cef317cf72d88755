"""An `Encoder` over torch towers: where it runs, how it batches, and what its results may depend on.

Legend: N rows, H height, W width, C colours (RGB), L tokens, D dimensions.
"""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.encoders.base import Device, no_text_tower
from operators.encoders.settings import Precision
from operators.errors import ModelError


@dataclass(frozen=True)
class Runtime:
    """Where and how a model runs. Fixed for its life, because each of these can change the last bits of a result."""

    device: torch.device
    autocast: bool
    batch_size: int
    threads: int


@dataclass(frozen=True)
class Towers:
    """A model on its device, reduced to what embedding needs.

    Attributes:
        dim: D.
        mean, std: of the reference transform's normalisation, one number a colour, for pixels in [0, 1].
        image: float32 (N, C, H, W) to (N, D).
        text: int64 (N, L) to (N, D); None without a text tower.
    """

    dim: int
    mean: Sequence[float]
    std: Sequence[float]
    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor] | None = None


def choose_runtime(precision: Precision, batch_size: int, device: Device, threads: int) -> Runtime:
    """Resolves `auto`.

    Raises:
        ModelError: a GPU was asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ModelError("device must be auto or cpu on a machine without a CUDA device, got cuda")
    kind = "cuda" if has_gpu and device != "cpu" else "cpu"
    autocast = precision == "bfloat16" or (precision == "auto" and kind == "cuda")
    return Runtime(torch.device(kind), autocast, batch_size, threads)


class TorchEncoder:
    """An `Encoder` over torch towers whose rows do not depend on how many rows came with them.

    Every forward pass has the same number of rows and the same number of threads, since both can change the last bits
    of a float32 product. (Measured with ViT-B/32 on a CPU: rows encoded one by one without padding differ by up to
    3e-6; padded, they equal those of a full batch bit for bit, at any place in it.)
    """

    def __init__(self, towers: Towers, runtime: Runtime) -> None:
        self.dim = towers.dim
        self.has_text = towers.text is not None
        self._towers = towers
        self._runtime = runtime
        # Tensors on the device, since dividing a CUDA tensor by a Python number multiplies by its rounded reciprocal.
        self._levels = torch.tensor(255.0, device=runtime.device)
        self._mean = torch.tensor(towers.mean, device=runtime.device).view(-1, 1, 1)
        self._std = torch.tensor(towers.std, device=runtime.device).view(-1, 1, 1)

    def encode_images(self, pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeds preprocessed images: (N, D)."""
        assert pixels_NHWC.dtype == np.uint8, pixels_NHWC.dtype
        return self._encode(pixels_NHWC, lambda pixels: self._towers.image(self.normalize(pixels)))

    def encode_texts(self, tokens_NL: NDArray[np.int32]) -> NDArray[np.float32]:
        """Embeds tokenised captions: (N, D). Raises ModelError where the model reads no text."""
        text = self._towers.text
        if text is None:
            raise no_text_tower()
        return self._encode(tokens_NL, lambda tokens: text(tokens.long()))

    def normalize(self, pixels_NHWC: Tensor) -> Tensor:
        """The rest of the reference transform, in its order of operations: float32 (N, C, H, W)."""
        pixels_NCHW = pixels_NHWC.permute(0, 3, 1, 2).contiguous().float()
        return pixels_NCHW.div_(self._levels).sub_(self._mean).div_(self._std)

    def _encode(self, rows: NDArray[Any], forward: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        if len(rows) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        with torch.inference_mode(), numerics(self._runtime):
            outputs = [
                forward(batch.to(self._runtime.device)) for batch in padded_batches(rows, self._runtime.batch_size)
            ]
            return torch.cat(outputs)[: len(rows)].float().cpu().numpy()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights drawn here depend on `seed` alone, and the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def must_fit(name: str) -> Iterator[None]:
    """Turns what a library raises on the weights of another architecture into one readable ModelError."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        lines = [textwrap.shorten(line, 200, placeholder=" ...") for line in str(error).splitlines()[:6]]
        raise ModelError(f"weights must be those of {name}, got {' | '.join(lines)}") from error


def padded_batches(rows: NDArray[Any], size: int) -> Iterator[Tensor]:
    """Batches of exactly `size` rows; the last one repeats its last row."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size].copy()  # rows may be a read-only view of shared memory, which torch refuses
        padding = np.repeat(batch[-1:], size - len(batch), axis=0)
        yield torch.from_numpy(np.concatenate([batch, padding]) if len(padding) else batch)


@contextmanager
def numerics(runtime: Runtime) -> Iterator[None]:
    """Sets everything process-wide that the last bits depend on, and puts it back."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(runtime.threads)
    try:
        with (
            torch.autocast(runtime.device.type, dtype=torch.bfloat16, enabled=runtime.autocast),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_num_threads(threads_before)
