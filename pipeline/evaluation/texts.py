"""Texts through a model's own text tower: the prompts of classes, and captions.

    texts/<hash of the model and the texts>.npz     stored rows, float16, one for each text of a chunk

Texts go in chunks of a fixed size, so what is kept does not depend on how many workers there were.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from operators.embeddings import to_unit_float16
from operators.encoders.base import Device
from operators.errors import ModelError
from pipeline.integrity import read_arrays
from pipeline.models import build_encoder, build_preprocessor, model_identity
from pipeline.placement import num_on_gpus
from pipeline.run import Run
from pipeline.spread import spread
from pipeline.storage import Store, digest
from pipeline.stream.encode import THREADS

TEXTS_VERSION = 1

_CHUNK_TEXTS = 8192
"""Enough to be worth loading a text tower for."""


def embed_texts(run: Run, models: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """Embeds texts with every model, or finds that done; returns the names of the arrays of each, in order.

    Raises:
        ModelError: a model has no text tower, or gives a text no direction.
    """
    chunks = [tuple(texts[start : start + _CHUNK_TEXTS]) for start in range(0, len(texts), _CHUNK_TEXTS)]
    identities = {model: model_identity(run.models[model]) for model in models}
    names = {
        model: [f"texts/{digest(TEXTS_VERSION, identity, chunk)}.npz" for chunk in chunks]
        for model, identity in identities.items()
    }
    missing = [
        _Work(model, run.models[model], name, chunk)
        for model in models
        for name, chunk in zip(names[model], chunks, strict=True)
        if not run.store.exists(name)
    ]
    if missing:
        gpus = min(1, num_on_gpus(run.gpus))
        embed = partial(_embed, run.store, "auto" if gpus else "cpu")
        with run.progress.step("prompts", sum(len(work.texts) for work in missing), "texts") as progress:
            for done in spread(embed, missing, workers=run.workers, num_gpus=gpus):
                progress.advance(done)
    return names


def read_texts(store: Store, names: Sequence[str]) -> NDArray[np.float16]:
    """The rows of `embed_texts`."""
    rows_PD: NDArray[np.float16] = np.concatenate([read_arrays(store, name)["rows_PD"] for name in names])
    return rows_PD


@dataclass(frozen=True)
class _Work:
    """A chunk of texts for one model, and where its rows go."""

    model: str
    settings: Any
    name: str
    texts: Sequence[str]


def _embed(store: Store, device: Device, work: _Work) -> int:
    encoder = build_encoder(work.settings, device=device, threads=THREADS)
    rows_PD, sound_P = to_unit_float16(encoder.encode_texts(build_preprocessor(work.settings).text(work.texts)))
    if not sound_P.all():
        text = work.texts[int(np.flatnonzero(~sound_P)[0])]
        raise ModelError(f"models.{work.model} must give every text a finite embedding, got none for {text!r}")
    sink = io.BytesIO()
    np.savez(sink, rows_PD=rows_PD)
    store.publish(work.name, sink.getvalue())
    return len(work.texts)
