"""From a task of the config to a job and its inputs: sets are embedded, labels and captions read, prompts embedded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from operators.errors import InputError
from operators.evaluation.zero_shot import class_prompts
from operators.rejects import Reason
from pipeline.evaluation.jobs import ClassificationJob, Inputs, Ints, Job, ProbeJob, RetrievalJob
from pipeline.evaluation.sets import EvaluationSet, open_set
from pipeline.evaluation.task_settings import Classification, LinearProbe, NamedTask, Retrieval
from pipeline.evaluation.texts import embed_texts
from pipeline.labels.lists import read_classes, read_templates
from pipeline.labels.numbers import Place, class_numbers, distinct_labels, group_numbers, numbers_among
from pipeline.run import Run
from pipeline.storage import digest


@dataclass(frozen=True)
class Prepared:
    """A task, ready for every model.

    Attributes:
        job: what they share.
        inputs: one for each model, in order.
        identity: names all that the outcomes depend on besides a model.
        set: that is evaluated.
        num_classes: None of a retrieval.
        train: what a linear probe is trained on.
    """

    job: Job
    inputs: Sequence[Inputs]
    identity: str
    set: EvaluationSet
    num_classes: int | None
    train: EvaluationSet | None = None


def prepare(run: Run, task: NamedTask) -> Prepared:
    """Reads and embeds all that a task needs, or finds that done.

    Args:
        run: of the job: store, models, workers, seed.
        task: of the config, its paths absolute.

    Raises:
        UserError, LimitExceeded: the set, its labels, its lists or a model cannot serve.
    """
    match task:
        case Classification():
            return _classification(run, task)
        case LinearProbe():
            return _linear_probe(run, task)
        case Retrieval():
            return _retrieval(run, task)


def _classification(run: Run, task: Classification) -> Prepared:
    classes, templates = read_classes(task.classes, task.storage), read_templates(task.templates, task.storage)
    data = open_set(run, task.data, list(run.models), f"tasks.{task.name}.data")
    labels = _read_labels(data, task, task.group_field)
    label_N = _numbers(class_numbers(classes, labels.texts, labels.places))
    _check_spread(run, task, label_N, classes)
    job = ClassificationJob(_uids(data), data.sound_N, label_N, labels.group_N, classes)
    prompts = class_prompts(classes, templates)
    inputs = _with_texts(run, data, prompts)
    identity = digest("classification", data.digest, labels.digest, classes, templates)
    return Prepared(job, inputs, identity, data, len(classes))


def _linear_probe(run: Run, task: LinearProbe) -> Prepared:
    models = list(run.models)
    train = open_set(run, task.train, models, f"tasks.{task.name}.train")
    test = open_set(run, task.test, models, f"tasks.{task.name}.test")
    learned, asked = _read_labels(train, task), _read_labels(test, task, task.group_field)
    if task.classes is None:
        classes = tuple(distinct_labels(learned.texts, learned.places))
        number = partial(numbers_among, classes)
    else:
        classes = read_classes(task.classes, task.storage)
        number = partial(class_numbers, classes)
    label_N = _numbers(number(asked.texts, asked.places))
    _check_spread(run, task, label_N, classes)
    job = ProbeJob(
        uids=_uids(test),
        sound_N=test.sound_N,
        label_N=label_N,
        group_N=asked.group_N,
        classes=classes,
        train_sound_N=train.sound_N,
        train_label_N=_numbers(number(learned.texts, learned.places)),
        l2=task.l2,
        seed=run.seed,
    )
    inputs = [_inputs(test, model, train=train) for model in models]
    sets = (train.digest, learned.digest, test.digest, asked.digest)
    identity = digest("linear_probe", *sets, classes, task.l2, run.seed)
    return Prepared(job, inputs, identity, test, len(classes), train)


def _retrieval(run: Run, task: Retrieval) -> Prepared:
    key = f"tasks.{task.name}.data"
    data = open_set(run, task.data, list(run.models), key, needs_text=task.captions_field is None)
    if task.captions_field:
        fields, named = data.fields([task.captions_field])
        lists = [_captions(json.loads(text)) if text else [] for text in fields[task.captions_field].to_pylist()]
    else:
        named = ""
        lists = [_captions(caption) for caption in data.samples["caption"].to_pylist()]
    if mute := sum(not captions for captions in lists):
        if mute == len(lists):
            raise InputError(f"{key} must hold at least one image with a caption, got none in {mute} images")
        missing = {Reason.MISSING_TEXT.value: mute + data.rejected.get(Reason.MISSING_TEXT, 0)}
        data = replace(data, rejected={**data.rejected, **missing})
    first_N, image_M = _images(data.samples["image_hash"].to_pylist(), [len(captions) for captions in lists])
    job = RetrievalJob(_uids(data).take(pa.array(first_N)), data.sound_N, first_N, image_M)
    captions = [caption for captions in lists for caption in captions]
    inputs = _with_texts(run, data, captions)
    return Prepared(job, inputs, digest("retrieval", data.digest, named, task.captions_field), data, None)


def _captions(value: object) -> list[str]:
    """The captions of a row: the texts of a list, or the lines of a text."""
    texts = value.splitlines() if isinstance(value, str) else value if isinstance(value, list) else []
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _images(hashes: Sequence[bytes], captions: Sequence[int]) -> tuple[Ints, Ints]:
    """Rows of one image are one image: the first row of each that has captions, and the image of each caption."""
    number_of: dict[bytes, int] = {}
    first_N: list[int] = []
    image_M: list[int] = []
    for row, (name, count) in enumerate(zip(hashes, captions, strict=True)):
        if count and name not in number_of:
            number_of[name] = len(first_N)
            first_N.append(row)
        image_M += [number_of[name]] * count if count else []
    return np.array(first_N, np.int64), np.array(image_M, np.int64)


def _with_texts(run: Run, data: EvaluationSet, texts: Sequence[str]) -> list[Inputs]:
    arrays = embed_texts(run, list(run.models), texts)
    return [_inputs(data, model, texts=arrays[model]) for model in run.models]


def _inputs(
    data: EvaluationSet, model: str, *, texts: Sequence[str] = (), train: EvaluationSet | None = None
) -> Inputs:
    sets = [data, *([train] if train else [])]
    content = digest([one.run.embeddings[model, "image"].digest for one in sets], list(texts))
    return Inputs(model, data.vectors(model), content, tuple(texts), train.vectors(model) if train else ())


@dataclass(frozen=True)
class _Labels:
    """The labels of the sound samples, as JSON, and where each stands; groups, if asked for; and a digest of both."""

    texts: list[str | None]
    places: list[Place]
    group_N: Ints | None
    digest: str


def _read_labels(data: EvaluationSet, task: Classification | LinearProbe, group_field: str | None = None) -> _Labels:
    label_field = task.field_in(data.run.pool)
    fields, content = data.fields(list(dict.fromkeys(name for name in (label_field, group_field) if name)))
    group_N = None
    if group_field:
        group_N = _numbers(group_numbers(fields[group_field].to_pylist(), data.places(f"group_field {group_field}")))
    return _Labels(fields[label_field].to_pylist(), data.places(f"label_field {label_field}"), group_N, content)


def _check_spread(run: Run, task: Classification | LinearProbe, label_N: Ints, classes: Sequence[str]) -> None:
    """Says so where a test set cannot tell anything."""
    if (label_N == label_N[0]).all():
        run.progress.note(
            f"warning: tasks.{task.name}: all {len(label_N):,} samples are of one class, {classes[label_N[0]]!r}: "
            "who always says so is always right"
        )


def _numbers(values: Sequence[int]) -> Ints:
    return np.array(values, np.int64)


def _uids(data: EvaluationSet) -> pa.Array:
    return data.samples["uid"].combine_chunks()
