"""What a model costs for each sample: measured here on the sampled inputs, or by counted operations on another GPU."""

import time
from collections.abc import Callable, Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from operators.embeddings import to_stored, to_unit_float16
from operators.encoders.settings import ModelSettings, StoredSettings
from pipeline.models import build_encoder
from pipeline.plan.machines import Machines
from pipeline.plan.start import Start, measure_start

_FEW = 4
"""Rows of the first forward pass. A model that takes long for these is not asked for a whole batch."""
_PATIENCE_SECONDS = 1.0
_MOST = 256

Origin = Literal["measured here", "counted operations", "the pool's own", "given"]


class Encoding(BaseModel):
    """One tower of a model.

    Attributes:
        dim: columns of an embedding.
        row_bytes: of a stored row, compressed.
        cpu_seconds: for each sample, where no GPU does it.
        gpu_seconds: for each sample, where one does.
        flops: counted floating-point operations of a sample; 0 where nobody asked.
        start: what a worker costs that loads the model; None where no worker has to.
        origin: where the seconds come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(ge=1)
    row_bytes: float = Field(ge=0)
    cpu_seconds: float = Field(default=0.0, ge=0)
    gpu_seconds: float = Field(default=0.0, ge=0)
    flops: float = Field(default=0.0, ge=0)
    start: Start | None = None
    origin: Origin = "measured here"


def measure_encoding(
    settings: ModelSettings, modality: str, inputs: NDArray[Any], machines: Machines, given: Collection[str] = ()
) -> Encoding:
    """Encodes some of the sampled inputs, on one thread of this machine.

    Args:
        settings: of the model.
        modality: `image` or `text`.
        inputs: pixels (n, H, W, C), tokens (n, L), or the pool's own vectors (n, D).
        machines: with GPUs, their seconds are derived from counted operations.
        given: fields that need not be measured, `cpu_seconds` and `start` among them.
    """
    if isinstance(settings, StoredSettings):
        rows_ND, _ = to_stored(inputs)
        return Encoding(dim=inputs.shape[1], row_bytes=_stored_bytes(rows_ND), origin="the pool's own")
    gpus = machines.gpus if settings.library != "pixels" else 0
    encode = _encoder(settings, modality, _FEW)
    seconds, rows_ND = _time(encode, inputs[:_FEW])
    if seconds < _PATIENCE_SECONDS and "cpu_seconds" not in given:
        encode = _encoder(settings, modality, None)
        encode(inputs[:1])
        seconds, rows_ND = _time(encode, _repeated(inputs, getattr(settings, "batch_size", _MOST)))
    unit_ND, _ = to_unit_float16(rows_ND[: len(inputs)])
    flops = count_flops(_encoder(settings, modality, 1), inputs[:1]) if gpus else 0.0
    return Encoding(
        dim=rows_ND.shape[1],
        row_bytes=_stored_bytes(unit_ND),
        cpu_seconds=seconds / len(rows_ND),
        gpu_seconds=machines.gpu_seconds(flops) if gpus else 0.0,
        flops=flops,
        start=None if "start" in given else measure_start(settings.model_dump_json(), str(list(inputs.shape[1:]))),
        origin="counted operations" if gpus else "measured here",
    )


def _encoder(settings: Any, modality: str, batch_size: int | None) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """The model on one thread of the CPU, with batches of a size of ours or its own."""
    own = batch_size is None or not hasattr(settings, "batch_size")
    chosen = settings if own else settings.model_copy(update={"batch_size": batch_size})
    encoder = build_encoder(chosen, device="cpu", threads=1)
    return encoder.encode_images if modality == "image" else encoder.encode_texts


def _time(encode: Callable[[NDArray[Any]], NDArray[np.float32]], inputs: NDArray[Any]) -> tuple[float, Any]:
    started = time.process_time()
    rows_ND = encode(inputs)
    return time.process_time() - started, rows_ND


def _repeated(inputs: NDArray[Any], batch: int) -> NDArray[Any]:
    """As many inputs as fill whole batches, since the last one would be padded; the first ones are distinct."""
    rows = batch * max(1, min(len(inputs), _MOST) // batch)
    return np.resize(inputs, (rows, *inputs.shape[1:]))


def count_flops(run: Callable[[NDArray[Any]], Any], inputs: NDArray[Any]) -> float:
    """Floating-point operations of a call, by torch's counter: two for each product of a matrix multiplication."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter knows nothing of fused attention
    try:
        with FlopCounterMode(display=False) as counter:
            run(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counter.get_total_flops())


def _stored_bytes(rows_ND: NDArray[np.float16]) -> float:
    """Bytes of a row as a part of embeddings holds it: photographs' are noise to a compressor, small pixels are not."""
    import pyarrow as pa

    from pipeline.artifact import parquet_bytes
    from pipeline.columns import embedding_field, fixed_binary

    schema = pa.schema([embedding_field("embedding", rows_ND.shape[1])])
    some, one = (len(parquet_bytes(pa.table([fixed_binary(x)], schema=schema))) for x in (rows_ND, rows_ND[:1]))
    return (some - one) / (len(rows_ND) - 1) if len(rows_ND) > 1 else float(rows_ND.nbytes)
