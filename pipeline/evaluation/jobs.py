"""The kinds of tasks, ready to be put to each model: what they share, and the arithmetic on one model's embeddings.

A job is split into pieces, which run anywhere; their results are joined into `Outcomes`, whose table is kept:

    classification, linear_probe     uid, label, prediction, rank, correct; group where there are groups
    retrieval                        uid (of the image), image (its number), query (`image` or `text`), rank, correct

`prediction` is null where the model could not embed the image, which counts as wrong. Row i of two models' outcomes of
one task is the same sample.

Legend: N images, M captions, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operators.errors import InputError
from operators.evaluation.linear_probe import choose_l2, fit, to_grid, with_bias
from operators.evaluation.outcomes import Classified, Outcomes, Retrieved
from operators.evaluation.retrieval import count_ahead, own_scores
from operators.evaluation.zero_shot import class_weights, classify
from operators.hashing import generator
from pipeline.evaluation.sets import read_vectors
from pipeline.evaluation.texts import read_texts
from pipeline.storage import Store

Ints = NDArray[np.int64]

_BLOCK_IMAGES = 2048


@dataclass(frozen=True)
class Inputs:
    """What a job reads of one model.

    Attributes:
        model: its name.
        images: parts of its embeddings of the set.
        texts: arrays of prompts or captions.
        train: parts of its embeddings of a training set.
        digest: names all of it, by content.
    """

    model: str
    images: tuple[str, ...]
    digest: str
    texts: tuple[str, ...] = ()
    train: tuple[str, ...] = ()


@dataclass(frozen=True)
class Solved:
    """What came of one piece: two arrays of integers, whose meaning is the job's, and facts to be reported."""

    first: NDArray[np.integer]
    second: NDArray[np.integer]
    facts: dict[str, float]


@dataclass(frozen=True)
class Job:
    """What every kind has.

    Attributes:
        uids: of the images that are evaluated, one of each.
        sound_N: which rows of the set are sound.
    """

    uids: pa.Array
    sound_N: NDArray[np.bool_]

    @property
    def pieces(self) -> list[slice]:
        """What can be solved by itself."""
        return [slice(None)]

    def solve(self, store: Store, inputs: Inputs, piece: slice) -> Solved:
        """The arithmetic of a piece."""
        raise NotImplementedError

    def join(self, solved: Sequence[Solved]) -> Outcomes:
        """The outcomes of all pieces, in order."""
        raise NotImplementedError

    def table(self, outcomes: Any) -> pa.Table:
        """The rows that are kept."""
        raise NotImplementedError


@dataclass(frozen=True)
class ClassificationJob(Job):
    """Zero-shot classification.

    Attributes:
        label_N: the true classes.
        group_N: the groups, if any.
        classes: names.
    """

    label_N: Ints
    group_N: Ints | None
    classes: tuple[str, ...]

    def solve(self, store: Store, inputs: Inputs, piece: slice) -> Solved:
        """Prediction and rank of each sample."""
        weights_KD = class_weights(read_texts(store, inputs.texts), self.classes)
        x_ND, present_N = read_vectors(store, inputs.images, self.sound_N)
        return Solved(*classify(x_ND, weights_KD, self.label_N, present_N), facts={})

    def join(self, solved: Sequence[Solved]) -> Classified:
        """There is one piece."""
        (only,) = solved
        return Classified(self.label_N, only.first, only.second, len(self.classes), self.group_N)

    def table(self, outcomes: Classified) -> pa.Table:
        """A row for each sample."""
        missing_N = outcomes.prediction_N < 0
        columns = {
            "uid": self.uids,
            "label": pa.array(outcomes.label_N, pa.int32()),
            "prediction": pa.array(outcomes.prediction_N, pa.int32(), mask=missing_N),
            "rank": pa.array(outcomes.rank_N, pa.int32()),
            "correct": pa.array(outcomes.rank_N == 0),
        }
        if outcomes.group_N is not None:
            columns["group"] = pa.array(outcomes.group_N, pa.int32())
        return pa.table(columns)


@dataclass(frozen=True)
class ProbeJob(ClassificationJob):
    """A linear probe.

    Attributes:
        train_sound_N: which rows of the training set are sound.
        train_label_N: their classes.
        l2: None to choose it.
        seed: of what is held out to choose it.
    """

    train_sound_N: NDArray[np.bool_]
    train_label_N: Ints
    l2: float | None
    seed: int

    def solve(self, store: Store, inputs: Inputs, piece: slice) -> Solved:
        """Fits, then classifies. The fact is `l2`."""
        train_ND, present_N = read_vectors(store, inputs.train, self.train_sound_N)
        train_NE, label_N = with_bias(train_ND[present_N]), self.train_label_N[present_N]
        if len(train_NE) == 0:
            raise InputError(f"models.{inputs.model} must embed at least one image of train, got none")
        rng = generator(self.seed, "linear_probe")
        l2 = self.l2 or choose_l2(train_NE, label_N, len(self.classes), rng)
        weights_KE = to_grid(fit(train_NE, label_N, len(self.classes), l2))
        x_ND, present_N = read_vectors(store, inputs.images, self.sound_N)
        prediction_N, rank_N = classify(with_bias(x_ND), weights_KE, self.label_N, present_N)
        return Solved(prediction_N, rank_N, {"l2": l2})


@dataclass(frozen=True)
class RetrievalJob(Job):
    """Retrieval both ways.

    Attributes:
        first_N: of the sound rows, the one that stands for each image.
        image_M: the image of each caption.
    """

    first_N: Ints
    image_M: Ints

    @property
    def pieces(self) -> list[slice]:
        """Blocks of images."""
        count = len(self.first_N)
        return [slice(start, min(count, start + _BLOCK_IMAGES)) for start in range(0, count, _BLOCK_IMAGES)]

    def solve(self, store: Store, inputs: Inputs, piece: slice) -> Solved:
        """Ranks of the block's images, and what the block adds to those of all captions."""
        images_ND = read_vectors(store, inputs.images, self.sound_N)[0][self.first_N]
        captions_MD = read_texts(store, inputs.texts)
        own_M = own_scores(images_ND, captions_MD, self.image_M)
        return Solved(*count_ahead(images_ND, captions_MD, self.image_M, own_M, piece), facts={})

    def join(self, solved: Sequence[Solved]) -> Retrieved:
        """Ranks of all images and captions."""
        image_ahead_M = np.sum([part.second for part in solved], axis=0)
        return Retrieved(np.concatenate([part.first for part in solved]), image_ahead_M, self.image_M)

    def table(self, outcomes: Retrieved) -> pa.Table:
        """A row for each image, then one for each caption."""
        images_N = np.arange(len(outcomes.caption_rank_N))
        image = np.concatenate([images_N, self.image_M])
        rank = np.concatenate([outcomes.caption_rank_N, outcomes.image_rank_M])
        query = ["image"] * len(images_N) + ["text"] * len(self.image_M)
        columns = {"uid": self.uids.take(pa.array(image)), "image": pa.array(image, pa.int64()), "query": query}
        return pa.table({**columns, "rank": pa.array(rank, pa.int64()), "correct": pa.array(rank == 0)})


def read_outcomes(table: pa.Table, num_classes: int | None) -> Outcomes:
    """The inverse of `Job.table`.

    Args:
        table: of outcomes.
        num_classes: of a classifier, None of a retrieval.
    """
    rank = table["rank"].to_numpy()
    if num_classes is None:
        is_image = np.array([query == "image" for query in table["query"].to_pylist()], dtype=bool)
        return Retrieved(rank[is_image], rank[~is_image], table["image"].to_numpy()[~is_image])
    group_N = table["group"].to_numpy() if "group" in table.column_names else None
    prediction_N = table["prediction"].fill_null(-1).to_numpy()
    return Classified(table["label"].to_numpy(), prediction_N, rank, num_classes, group_N)
