"""Texts through a model's own text tower: the prompts of classes, and captions.

    texts/<hash of the model and the texts>.npz     stored rows, float16, one for each text of a chunk

Texts go in chunks of a fixed size, so what is kept does not depend on how many workers there were.
"""

import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from operators.embeddings import to_unit_float16
from operators.errors import ModelError
from pipeline.integrity import read_arrays
from pipeline.models import build_encoder, build_preprocessor, model_identity
from pipeline.run import Run
from pipeline.spread import spread
from pipeline.storage import Store, digest
from pipeline.stream.encode import THREADS

TEXTS_VERSION = 1

_CHUNK_TEXTS = 8192
"""Enough to be worth loading a text tower for."""


def embed_texts(run: Run, model: str, texts: Sequence[str]) -> list[str]:
    """Embeds texts, or finds that done; returns the names of the arrays, in order.

    Raises:
        ModelError: the model has no text tower, or gives a text no direction.
    """
    identity = model_identity(run.models[model])
    chunks = [tuple(texts[start : start + _CHUNK_TEXTS]) for start in range(0, len(texts), _CHUNK_TEXTS)]
    names = [f"texts/{digest(TEXTS_VERSION, identity, chunk)}.npz" for chunk in chunks]
    missing = [(name, chunk) for name, chunk in zip(names, chunks, strict=True) if not run.store.exists(name)]
    gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    embed = partial(_embed, run.store, model, run.models[model])
    with run.progress.step(f"{model}.prompts", sum(len(chunk) for _, chunk in missing), "texts") as progress:
        for done in spread(embed, missing, workers=run.workers, num_gpus=gpus):
            progress.advance(done)
    return names


def read_texts(store: Store, names: Sequence[str]) -> NDArray[np.float16]:
    """The rows of `embed_texts`."""
    rows_PD: NDArray[np.float16] = np.concatenate([read_arrays(store, name)["rows_PD"] for name in names])
    return rows_PD


def _embed(store: Store, model: str, settings: Any, item: tuple[str, Sequence[str]]) -> int:
    name, texts = item
    encoder = build_encoder(settings, threads=THREADS)
    rows_PD, sound_P = to_unit_float16(encoder.encode_texts(build_preprocessor(settings).text(texts)))
    if not sound_P.all():
        text = texts[int(np.flatnonzero(~sound_P)[0])]
        raise ModelError(f"models.{model} must give every text a finite embedding, got none for {text!r}")
    sink = io.BytesIO()
    np.savez(sink, rows_PD=rows_PD)
    store.publish(name, sink.getvalue())
    return len(texts)
