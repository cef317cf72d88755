"""What the filters that are trained inside a curation have in common: trusted samples, or a filter trained before.

Such a step trains its filter once, publishes it as `<step>.training/<hash>/filter.safetensors` (`pipeline.filters`),
and then scores the pool shard by shard. Later runs, on any pool, can name that file under `trained`: only then are
their scores comparable, and a threshold that was stored with one of them holds for the others. Night by night
(`pipeline.given`), the filter of the first night scores all that comes.

Output column: `score`, float64, the higher the more like a trusted sample; null where a sample lacks what the filter
looks at. Every row passes.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from operators.errors import InputError
from pipeline.artifact import Artifact
from pipeline.filters.files import TrainedFilter, parse_filter, read_filter
from pipeline.integrity import damaged, reading
from pipeline.paths import Storage, resolve, resolve_source
from pipeline.pool import Source, names_password
from pipeline.references import check_reference, embed_reference
from pipeline.run import NotPublished, Plan, Read, Run
from pipeline.steps.base import Step, refuse_ignored


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_list), Field(min_length=1)]
"""Sources as a pool has them; a single one need not stand in a list."""


class Learned(Step):
    """Settings of the step.

    Attributes:
        trusted: the samples that are to score high, as sources of a pool.
        trained: a `filter.safetensors` of an earlier run, instead of everything that training asks for.
        storage: options for fsspec to open files of weights. Default: those of a workspace in the same kind of store.
    """

    random: ClassVar[bool] = True
    applied: ClassVar[frozenset[str]] = frozenset({"step", "name", "trained", "storage"})
    """Settings that count for a filter that is trained already."""
    told: ClassVar[frozenset[str]] = frozenset()
    """What the file of such a filter says of how to use it."""

    trusted: Sources | None = None
    trained: str | None = Field(default=None, min_length=1)
    storage: Storage = None

    @field_validator("trained")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and names_password(url):
            raise ValueError(f"must hold no password (it would be recorded), got one for {url.rpartition('@')[2]}")
        return url

    @model_validator(mode="after")
    def _check_learned(self) -> Self:
        if (self.trusted is None) == (self.trained is None):
            raise ValueError("needs exactly one of trusted and trained")
        if self.trained is not None:
            ignored = [name for name in type(self).model_fields if name not in self.applied]
            refuse_ignored(self, ignored, "with trained, which has it settled")
        return self

    @property
    def gives_score(self) -> bool:
        """Always."""
        return True

    def scored_by(self, models: Mapping[str, Any]) -> str | None:
        """The content of the filter; None while it is to be trained, since nobody knows what will come of it."""
        return None if self.trained is None else self._identity(self._before)

    def resolved(self) -> Self:
        """The same with every path absolute."""
        trusted = self.trusted and tuple(map(resolve_source, self.trusted))
        return resolve(self.model_copy(update={"trusted": trusted}), ("trained",))

    def content(self) -> Mapping[str, str]:
        """The file of a filter that was trained before."""
        return {} if self.trained is None else {"trained": self._before.digest}

    def check(self) -> None:
        """Looks at the trusted set, or reads the trained filter, before any work. Raises UserError."""
        if self.trusted is None:
            self.check_trained(self._before)
        else:
            check_reference(self.trusted)

    def check_trained(self, trained: TrainedFilter) -> None:
        """Whether a filter is whole and fits the settings, as far as they tell. Raises InputError."""
        if missing := sorted(self.told - trained.settings.keys()):
            rule = f"{trained.place} must be a trained filter of kind {self.step}, whose settings tell {missing[0]}"
            raise InputError(f"{rule}, got {', '.join(sorted(trained.settings)) or 'none'}")

    def run(self, run: Run) -> Artifact:
        """Finds or makes the scores."""
        trained = self._train(run) if self.trained is None else self._before
        self.check_scored(run, trained)
        scored_by = self._identity(trained)
        plan = run.plan(self.title, {"version": self.version, "scored_by": scored_by}, self.score_reads(run))
        info = {"scored_by": scored_by, "filter": trained.place, "training": dict(trained.training)}
        return plan.published or self.score(plan, trained, info)

    def check_scored(self, run: Run, trained: TrainedFilter) -> None:
        """Whether a filter fits what the run has for it to score. Raises InputError."""

    def score_settings(self) -> Mapping[str, Any]:
        """The settings that change the scores of one and the same filter."""
        return {}

    @abstractmethod
    def plan_training(self, run: Run, trusted: Run, identity: Mapping[str, Any]) -> Plan:
        """The plan whose folder is the filter's address and whose rows it learns from besides the trusted ones."""

    @abstractmethod
    def train(self, plan: Plan, trusted: Run) -> bytes:
        """Trains the filter and gives its file."""

    @abstractmethod
    def score_reads(self, run: Run) -> Sequence[Read]:
        """What of the pool is scored."""

    @abstractmethod
    def score(self, plan: Plan, trained: TrainedFilter, info: Mapping[str, Any]) -> Artifact:
        """Scores the pool."""

    @cached_property
    def _before(self) -> TrainedFilter:
        """The filter of an earlier run, read once and then the same for the whole of this one."""
        assert self.trained is not None
        return read_filter(self.trained, self.step, self.storage)

    def _identity(self, trained: TrainedFilter) -> str:
        return json.dumps({"filter": self.step, "sha256": trained.digest, **self.score_settings()}, sort_keys=True)

    def _train(self, run: Run) -> TrainedFilter:
        given = {} if run.given is None else run.given.filters
        path = given.get(self.title) or self._trained_path(run)
        given[self.title] = path
        with reading(run.store, path):
            data = run.store.read(path)
        try:
            return parse_filter(data, path, self.step)
        except InputError as error:  # of a file of our own
            raise damaged(run.store, path, error) from error

    def _trained_path(self, run: Run) -> str:
        """Where the filter lies, once it is trained."""
        assert self.trusted is not None
        trusted = embed_reference(run, self.trusted, self.embeddings(), f"{self.title}.trusted")
        identity = {key: value for key, value in self.identity(run).items() if key not in ("trusted", "trained")}
        content = [artifact.digest for artifact in trusted.artifacts.values()]
        plan = self.plan_training(run, trusted, identity | {"trusted": content})
        path = f"{plan.folder}/filter.safetensors"
        if not run.store.exists(path):
            if run.dry:
                raise NotPublished(plan.name)
            run.store.publish(path, self.train(plan, trusted))
        return path

    def check_number(self, name: str, count: int, of: int, what: str) -> None:
        """Raises InputError where there are fewer than two samples of a set to learn from."""
        if count < 2:
            raise InputError(f"{self.title}.{name} must hold at least 2 samples with {what}, got {count} of {of}")
