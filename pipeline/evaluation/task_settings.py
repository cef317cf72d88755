"""What a task of `winnow evaluate` may say."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from operators.evaluation.datacomp import BY_KEY, Kind
from operators.evaluation.zero_shot import PLACEHOLDER
from pipeline.config.problems import KeyProblem
from pipeline.paths import Storage, resolve_source
from pipeline.pool import Pool
from pipeline.storage import absolute

TASK_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*"
"""DataComp's keys hold a slash: `vtab/caltech101`."""

ClassifierMetric = Literal[
    "acc1", "acc5", "mean_per_class_recall", "F1-macro_all", "acc_wg", "acc_top5_wg", "acc_worst_region"
]
_OF_GROUPS = {"acc_wg", "acc_top5_wg", "acc_worst_region"}

Words = tuple[Annotated[str, Field(min_length=1)], ...]


class _Task(BaseModel):
    """What every task has."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    task: str

    @property
    def reads_text(self) -> bool:
        """Whether the models need a text tower."""
        return True

    @property
    def pools(self) -> Mapping[str, Pool]:
        """The evaluation sets that the config describes, by key."""
        return {}

    def resolved(self) -> Self:
        """The same with every path absolute."""
        return self.model_copy(update={key: _resolve_pool(pool) for key, pool in self.pools.items()})


class _NamedTask(_Task):
    """A task of its own.

    Attributes:
        name: in results. One of DataComp's 38 keys (`cifar10`, `retrieval/flickr30k`) counts in DataComp's means.
        kind: which of DataComp's tasks it may be named after.
    """

    kind: ClassVar[Kind] = "classification"

    name: str = Field(pattern=f"^{TASK_NAME}$")

    @property
    def dataset(self) -> str:
        """DataComp's name for it, else its own."""
        return BY_KEY[self.name].dataset if self.name in BY_KEY else self.name

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        kind = BY_KEY[self.name].kind if self.name in BY_KEY else self.kind
        if kind != self.kind:
            rule = f"must not be that of a task of {kind} in DataComp, where this is one of {self.kind}"
            raise KeyProblem(("name",), f"{rule}, got {self.name!r}")
        return self


class _Labelled(_NamedTask):
    """A task with classes.

    Attributes:
        label_field: the metadata field (column, JSON key) that holds a sample's class: its number, or its name in the
            list of classes. Default: the member `.cls` of a webdataset, else `label`.
        group_field: one that holds the group of a sample, for metrics of the worst group; `npy` of a webdataset is the
            first number of that member.
        metric: the one that counts. Default: DataComp's for a task of its names, else `acc1`.
        storage: options for fsspec to open files of `classes` and `templates`. Default: those of a workspace in the
            same kind of store.
    """

    label_field: str | None = Field(default=None, min_length=1)
    group_field: str | None = Field(default=None, min_length=1)
    metric: ClassifierMetric | None = None
    storage: Storage = None

    def field_in(self, pool: Pool) -> str:
        """The `label_field` in a set."""
        return self.label_field or ("cls" if pool.sources[0].format == "webdataset" else "label")

    @property
    def main_metric(self) -> str:
        """The one that counts."""
        facts = BY_KEY.get(self.name)
        known = facts is not None and (self.group_field is not None or not facts.grouped)
        return self.metric or (facts.metric if facts and known else "acc1")

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.metric in _OF_GROUPS and self.group_field is None:
            raise KeyProblem(("metric",), f"must be used with group_field, got {self.metric} without it")
        return self


class Classification(_Labelled):
    """Zero-shot classification with prompt ensembles.

    Attributes:
        data: the images, as a pool, with its limits.
        classes: their names, or a file of them: a JSON list, or a name on each line (DataComp's `classnames.txt`). One
            that comes twice, as in CLIP's list for ImageNet, stands for two classes, whose labels must be numbers.
        templates: prompts with `{c}` in the place of the class, or a file of them.
    """

    task: Literal["classification"]
    data: Pool
    classes: Words | str = Field(min_length=1)
    templates: Words | str = Field(default=("a photo of a {c}.",), min_length=1)

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, templates: Words | str) -> Words | str:
        for i, template in enumerate([] if isinstance(templates, str) else templates):
            if PLACEHOLDER not in template:
                raise KeyProblem((i,), f"must hold {PLACEHOLDER} where the class goes, got {template!r}")
        return templates

    @property
    def pools(self) -> Mapping[str, Pool]:
        """The images."""
        return {"data": self.data}

    def resolved(self) -> Self:
        """The same with every path absolute."""
        paths = {key: absolute(path) for key in ("classes", "templates") if isinstance(path := getattr(self, key), str)}
        return super().resolved().model_copy(update=paths)


class DatacompSuite(_Task):
    """Every task found in a folder of DataComp's layout: `wds_{task}_test/`, see `pipeline.evaluation.suite`.

    Attributes:
        path: the folder; local or whatever fsspec opens.
        only: keys of the tasks to take (`vtab/dtd`); all of them unless given.
        storage: options for fsspec.
    """

    task: Literal["classification"]
    format: Literal["datacomp"]
    path: str = Field(min_length=1)
    only: Words = ()
    storage: dict[str, Any] = Field(default_factory=dict, repr=False)

    def resolved(self) -> Self:
        """The same with every path absolute."""
        return self.model_copy(update={"path": absolute(self.path)})


class Retrieval(_NamedTask):
    """Image-text retrieval both ways: recall at 1, 5 and 10.

    Attributes:
        data: images and captions, as a pool. Each line of a caption is a caption; rows of one image are one image. An
            image without a caption is left out, and counted.
        captions_field: metadata field that holds a list of captions, instead.
    """

    kind: ClassVar[Kind] = "retrieval"

    task: Literal["retrieval"]
    data: Pool
    captions_field: str | None = Field(default=None, min_length=1)

    @property
    def main_metric(self) -> str:
        """The mean of both ways."""
        return "mean_recall@1"

    @property
    def pools(self) -> Mapping[str, Pool]:
        """The pairs."""
        return {"data": self.data}


class LinearProbe(_Labelled):
    """Logistic regression on frozen image embeddings.

    Attributes:
        train, test: the images, as pools.
        classes: their names, or a file of them, where labels are names. Default: labels are what they are.
        l2: weight of the penalty, of the mean loss. Default: chosen on a fifth of `train`, held out.
    """

    task: Literal["linear_probe"]
    train: Pool
    test: Pool
    classes: Words | str | None = Field(default=None, min_length=1)
    l2: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @property
    def reads_text(self) -> bool:
        """Images only."""
        return False

    @property
    def dataset(self) -> str:
        """Its own name: a probe is none of DataComp's tasks."""
        return self.name

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Both sets."""
        return {"train": self.train, "test": self.test}

    def resolved(self) -> Self:
        """The same with every path absolute."""
        paths = {"classes": absolute(self.classes)} if isinstance(self.classes, str) else {}
        return super().resolved().model_copy(update=paths)


def _kind(task: Any) -> str:
    """Which settings a task of the config is meant to be."""
    given = task if isinstance(task, Mapping) else {key: getattr(task, key, None) for key in ("task", "format")}
    return "datacomp" if given.get("format") == "datacomp" else str(given.get("task"))


NamedTask = Classification | Retrieval | LinearProbe
Task = Annotated[
    Annotated[Classification, Tag("classification")]
    | Annotated[DatacompSuite, Tag("datacomp")]
    | Annotated[Retrieval, Tag("retrieval")]
    | Annotated[LinearProbe, Tag("linear_probe")],
    Discriminator(
        _kind,
        custom_error_type="task_kind",
        custom_error_message="must have a task: one of classification, retrieval, linear_probe",
    ),
]


def _resolve_pool(pool: Pool) -> Pool:
    return pool.model_copy(update={"sources": tuple(map(resolve_source, pool.sources))})
