"""Where a fit stands, kept in the workspace after each iteration, so that a killed driver goes on from there.

Legend: K clusters, D dimensions.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.integrity import read_arrays
from pipeline.storage import Store

UNFINISHED = "iterations"
"""The folder of a clustering that holds what is not finished."""


@dataclass(frozen=True)
class State:
    """All that the next iteration depends on besides the rows and the settings.

    Attributes:
        centroids_KD: float64, to be assigned to next.
        inertia: under all centroids before these.
        repaired: whether a cluster was split to make these.
    """

    centroids_KD: NDArray[np.float64]
    inertia: tuple[float, ...] = ()
    repaired: bool = False


@dataclass(frozen=True)
class Iterations:
    """`iteration-0003.npz` in a folder: the state after three updates. Each takes the place of the one before it."""

    store: Store
    folder: str

    def load(self) -> State | None:
        """The last state that was saved, if any. A store's listing may lag behind and name one that is gone."""
        names = [name for name in self._names() if self.store.exists(name)]
        if not names:
            return None
        arrays = read_arrays(self.store, names[-1])
        return State(arrays["centroids_KD"], tuple(arrays["inertia"].tolist()), bool(arrays["repaired"]))

    def save(self, state: State) -> None:
        """Saves a state, then removes those before it."""
        before = self._names()
        sink = io.BytesIO()
        np.savez(
            sink, centroids_KD=state.centroids_KD, inertia=np.array(state.inertia), repaired=np.array(state.repaired)
        )
        name = f"{self.folder}/iteration-{len(state.inertia):04}.npz"
        self.store.publish(name, sink.getvalue())
        for other in before:
            if other != name:
                self.store.remove(other)

    def _names(self) -> list[str]:
        return [name for name in self.store.find(self.folder) if name.startswith(f"{self.folder}/iteration-")]
