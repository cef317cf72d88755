"""What came of each sample, and every metric that can be told from it.

Two models' outcomes on one task have the same units in the same order, so that differences can be paired.

Legend: N samples (images), M captions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from operators.evaluation.metrics import macro_f1, mean_per_class_recall, share, worst_group

Ints = NDArray[np.integer]

RECALLS = (1, 5, 10)


class Outcomes(Protocol):
    """What both kinds offer."""

    @property
    def num_units(self) -> int:
        """How many things a bootstrap draws from: images."""

    @property
    def not_embedded(self) -> int:
        """How many of those the model could not embed."""

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that there are."""

    def measure(self, name: str, times_N: Ints | None = None) -> float:
        """One metric, in [0, 1], with each unit counted so often; each once without multiplicities."""


@dataclass(frozen=True)
class Classified:
    """Of a classifier.

    Attributes:
        label_N: the true class, >= 0.
        prediction_N: the class that won, -1 for none.
        rank_N: how many classes came before the true one; `num_classes` where there is no prediction.
        num_classes: that could win. With fewer than five there is no `acc5`, as in DataComp.
        group_N: >= 0, such as the region an image comes from; None where there are no groups.
    """

    label_N: Ints
    prediction_N: Ints
    rank_N: Ints
    num_classes: int
    group_N: Ints | None = None

    @property
    def num_units(self) -> int:
        """N."""
        return len(self.label_N)

    @property
    def not_embedded(self) -> int:
        """Those without a prediction."""
        return int((self.prediction_N < 0).sum())

    @property
    def names(self) -> tuple[str, ...]:
        """DataComp's names; `wg` is the worst group."""
        five = self.num_classes >= 5
        names = ("acc1", *(["acc5"] if five else []), "mean_per_class_recall", "F1-macro_all")
        return names if self.group_N is None else (*names, "acc_wg", *(["acc_top5_wg"] if five else []))

    def measure(self, name: str, times_N: Ints | None = None) -> float:
        """One of `names`, or `acc_worst_region`, which FMoW calls its `acc_wg`."""
        match name:
            case "acc1":
                return share(self._found(1), times_N)
            case "acc5":
                return share(self._found(5), times_N)
            case "mean_per_class_recall":
                return mean_per_class_recall(self.label_N, self.prediction_N, times_N)
            case "F1-macro_all":
                return macro_f1(self.label_N, self.prediction_N, times_N)
            case "acc_wg" | "acc_worst_region" | "acc_top5_wg":
                assert self.group_N is not None, name
                return worst_group(self._found(5 if "top5" in name else 1), self.group_N, times_N)
        raise KeyError(name)

    def _found(self, k: int) -> NDArray[np.bool_]:
        """Whose true class is among the best k; never what was not embedded, however few classes there are."""
        return self.rank_N < min(k, self.num_classes)


@dataclass(frozen=True)
class Retrieved:
    """Of a retrieval both ways.

    Attributes:
        caption_rank_N: for each image, how many captions came before the best of its own; M where not embedded.
        image_rank_M: for each caption, how many images came before its own; N where that was not embedded.
        image_M: the image of each caption. A bootstrap draws images, and their captions with them.
    """

    caption_rank_N: Ints
    image_rank_M: Ints
    image_M: Ints

    @property
    def num_units(self) -> int:
        """N."""
        return len(self.caption_rank_N)

    @property
    def not_embedded(self) -> int:
        """Those that every caption came before, their own too."""
        return int((self.caption_rank_N == len(self.image_M)).sum())

    @property
    def names(self) -> tuple[str, ...]:
        """DataComp's names: an image is retrieved by its caption, a text by its image."""
        ways = [f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in RECALLS]
        return (*ways, "mean_recall@1")

    def measure(self, name: str, times_N: Ints | None = None) -> float:
        """One of `names`."""
        if name == "mean_recall@1":
            return (self._recall("image", 1, times_N) + self._recall("text", 1, times_N)) / 2
        if name not in self.names:
            raise KeyError(name)
        way, _, k = name.partition("_retrieval_recall@")
        return self._recall(way, int(k), times_N)

    def _recall(self, way: str, k: int, times_N: Ints | None) -> float:
        """What was not embedded is never found, however few candidates there are."""
        if way == "text":
            return share(self.caption_rank_N < min(k, len(self.image_M)), times_N)
        found_M = self.image_rank_M < min(k, len(self.caption_rank_N))
        return share(found_M, None if times_N is None else times_N[self.image_M])


def all_metrics(outcomes: Outcomes, main: str) -> Mapping[str, float]:
    """Every metric, the main one under its own name too."""
    return {name: outcomes.measure(name) for name in dict.fromkeys((*outcomes.names, main))}
