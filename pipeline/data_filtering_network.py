"""A filter for notebooks: trained on trusted pairs, it keeps what it finds aligned of any others.

Fang et al. 2023, arXiv 2309.17425, section 3: a small CLIP whose cosine of image and caption is the score. Underneath,
training is `winnow train`'s and filtering `winnow curate`'s, so both can be killed and go on.
"""

import os
from collections.abc import Mapping
from typing import Any, Self, TypeAlias

import ray.data

from operators.encoders.settings import OpenClipSettings
from operators.errors import InputError, ModelError
from pipeline.artifact import read_beside
from pipeline.curate import run_curation
from pipeline.curation import Curation
from pipeline.engine import Resources
from pipeline.progress import Progress
from pipeline.ray_datasets import kept_rows, write_pool
from pipeline.record import open_run
from pipeline.steps.filter import Filter
from pipeline.steps.score import Score
from pipeline.steps.thresholds import Threshold, ThresholdFile
from pipeline.storage import Store, absolute, digest
from pipeline.training.finished import MODEL, WEIGHTS_NAME
from pipeline.training.settings import Data, Recipe, Training
from pipeline.training.trainer import TrainingResult, run_training
from pipeline.weights import CONFIG_NAME, ORIGIN_NAME

Pairs: TypeAlias = "ray.data.Dataset | Data | Mapping[str, Any] | str | os.PathLike[str]"
"""A Ray Dataset with columns of encoded images (`image`, `jpg`, `png`, ...) and captions (`text` or `caption`); a pool,
as the `pool:` of a config; the workspace of a finished curation, which stands for what it kept; or `Data`."""

SCORE = "data_filtering_score"
_FILTER = _NETWORK = "data_filtering"
_HOME = "network"
_THRESHOLD = "threshold.json"


class DataFilteringNetwork:
    """A network and the threshold of its score.

    All of it lies in the workspace: opened there again, it is as it was.

        network = DataFilteringNetwork("runs/dfn", {"model": {"name": "ViT-B-32"}, "samples_seen": 10_000_000})
        network.train({"format": "webdataset", "path": "trusted/*.tar"})
        kept = network.filter({"format": "webdataset", "path": "pool/*.tar"}, keep_fraction=0.15)
        network.save("dfn")

    Args:
        workspace: a folder for what is trained and filtered.
        recipe: how the network is trained, with the keys of a `winnow train` config; not needed to filter.
        seed: of every random choice.
        storage: options for fsspec to open the workspace.
        resources: what filtering may use; what training may is in the recipe.
        address: of a running Ray cluster.
    """

    def __init__(
        self,
        workspace: str | os.PathLike[str],
        recipe: Recipe | Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        storage: Mapping[str, Any] | None = None,
        resources: Resources | None = None,
        address: str | None = None,
    ) -> None:
        self._store = Store(absolute(os.fspath(workspace)), dict(storage or {}))
        self._recipe = None if recipe is None else Recipe.model_validate(recipe)
        self._seed = seed
        self._resources = resources or Resources()
        self._address = address

    @property
    def model_path(self) -> str:
        """The folder of the network, as open_clip's `local-dir:` takes it. Raises ModelError where there is none."""
        folder = f"{_HOME}/{MODEL}"
        if not all(self._store.exists(f"{folder}/{name}") for name in (WEIGHTS_NAME, CONFIG_NAME)):
            raise ModelError(f"{self._store.url} must hold a trained network, got none: train or load one")
        return f"{self._store.url}/{folder}"

    @property
    def threshold(self) -> Threshold | None:
        """The lowest score that is kept, with how it was fixed; None before the first `filter` with a share."""
        return self._threshold_file.read() if self._store.exists(_THRESHOLD) else None

    def train(self, dataset: Pairs) -> TrainingResult:
        """Trains the network, or finds that done; a killed training goes on. A new network has no threshold yet.

        Args:
            dataset: trusted pairs. A Ray Dataset counts as a new one at each call.

        Raises:
            UserError, LimitExceeded, TrainingDiverged: as `winnow train`.
        """
        if self._recipe is None:
            raise InputError("recipe must be given to DataFilteringNetwork in order to train, got none")
        place = {"workspace": f"{self._store.url}/{_HOME}", "storage": dict(self._store.options)}
        own = {**place, "seed": self._seed, "data": (self._open(dataset),)}
        with self._store.locked():
            result = run_training(Training.model_validate({**dict(self._recipe), **own}), self._address)
            if not result.reused:
                self._store.remove(_THRESHOLD)
        return result

    def filter(
        self, dataset: Pairs, keep_fraction: float | None = None, *, estimate_on: int = 1_000_000
    ) -> ray.data.Dataset | str:
        """Keeps the pairs that the network finds aligned.

        Args:
            dataset: pairs. Those of a workspace are judged after its own steps, which are repeated in a workspace of
                this network's; the one that was given stays as it is.
            keep_fraction: share to keep, which fixes the threshold. Default: apply the one that was fixed before to
                each pair alone.
            estimate_on: a larger set's threshold is fixed on so many drawn pairs of it.

        Returns:
            what is kept, in the form of what came in: of a Ray Dataset its rows with a further column,
            `data_filtering_score`, float64 in [-1, 1]; else the path of a curated workspace, whose ledger and report
            say what became of every pair, and which `train`, `filter` and every job of Winnow take in turn.

        Raises:
            InputError: there is neither a share nor a threshold, or the share is none.
            UserError, LimitExceeded: as `winnow curate`.
        """
        if keep_fraction is None and self.threshold is None:
            raise InputError("keep_fraction must be given where no threshold has been fixed yet, got neither")
        if keep_fraction is not None and not 0 < keep_fraction <= 1:
            raise InputError(f"keep_fraction must be in (0, 1], got {keep_fraction}")
        fixed = {"threshold": self._threshold_file}
        rule = fixed if keep_fraction is None else {"keep_fraction": keep_fraction, "estimate_on": estimate_on}
        judge = Filter.model_validate({"step": "filter", "name": _FILTER, "score": SCORE, **rule})
        config = self._curation(self._open(dataset), judge)
        with self._store.locked():
            run_curation(config, self._address)
            run, _ = open_run(config.store, workers=1, progress=Progress())
            if keep_fraction is not None:
                judged = run.artifacts[_FILTER]
                self._store.replace(_THRESHOLD, read_beside(run.store, judged, judged.info["threshold_file"]))
        return kept_rows(run, SCORE) if isinstance(dataset, ray.data.Dataset) else config.store.url

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the network and its threshold into a folder that `load`, open_clip and any config can read."""
        network, target = Store(self.model_path, self._store.options), Store(absolute(os.fspath(folder)))
        _copy(network, target)
        if self.threshold:
            target.replace(_THRESHOLD, self._store.read(_THRESHOLD))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], workspace: str | os.PathLike[str], **settings: Any) -> Self:
        """A network that was saved, or any CLIP that open_clip exported, in a workspace of its own.

        Args:
            folder: with `open_clip_config.json` and `open_clip_model.safetensors`.
            workspace: as of the class.
            **settings: as of the class.

        Raises:
            ModelError: the folder holds no such files.
        """
        network = cls(workspace, **settings)
        source = Store(absolute(os.fspath(folder)))
        missing = [name for name in (WEIGHTS_NAME, CONFIG_NAME) if not source.exists(name)]
        if missing:
            raise ModelError(f"{source.url} must hold {WEIGHTS_NAME} and {CONFIG_NAME}, got no {missing[0]}")
        with network._store.locked():
            _copy(source, Store(f"{network._store.url}/{_HOME}/{MODEL}", network._store.options))
            network._store.remove(_THRESHOLD)
            if source.exists(_THRESHOLD):
                network._store.replace(_THRESHOLD, source.read(_THRESHOLD))
        return network

    def _open(self, dataset: Pairs) -> Data:
        if isinstance(dataset, ray.data.Dataset):
            return Data(pool=write_pool(dataset, self._store))
        if isinstance(dataset, Mapping):
            return Data.model_validate({"pool": dataset})
        return dataset if isinstance(dataset, Data) else Data(workspace=os.fspath(dataset))

    def _curation(self, data: Data, judge: Filter) -> Curation:
        """The curation that scores and judges the pairs."""
        if data.captions is not None:
            raise InputError("filter must be given pairs with captions of their own, got classes to make captions of")
        if data.pool is not None:
            before = Curation(pool=data.pool, workspace=self._store.url, seed=self._seed)
        else:
            assert data.workspace is not None
            store = Store(absolute(data.workspace), data.storage)
            _, before = open_run(store, workers=1, progress=Progress(), snapshot=data.snapshot)
        source = data.pool.model_dump(mode="json") if data.pool else absolute(str(data.workspace))
        folder = self.model_path
        network = OpenClipSettings(library="open_clip", name=f"{folder}/{CONFIG_NAME}", weights=folder)
        own = (Score(step="score", name=SCORE, model=_NETWORK), judge)
        steps = tuple(step for step in before.steps if step.title not in (SCORE, _FILTER))
        changes = {
            "workspace": f"{self._store.url}/filtered/{digest(source)}",
            "storage": dict(self._store.options),
            "models": {**before.models, _NETWORK: network},
            "steps": (*steps, *own),
            "export": (),
            "resources": self._resources,
        }
        return Curation(**{**dict(before), **changes})

    @property
    def _threshold_file(self) -> ThresholdFile:
        return ThresholdFile(file=f"{self._store.url}/{_THRESHOLD}", storage=dict(self._store.options))


def _copy(source: Store, target: Store) -> None:
    """Copies a network; `training.json`, where there is one, comes last and says that all of it is there."""
    target.remove(ORIGIN_NAME)
    for name in (WEIGHTS_NAME, CONFIG_NAME, ORIGIN_NAME):
        if source.exists(name):
            target.replace(name, source.read(name))
