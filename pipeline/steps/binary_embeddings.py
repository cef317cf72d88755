"""`binary_embeddings`: the logit of a linear classifier on frozen embeddings, trusted samples against the pool.

One of the filters of Fang et al. 2023 (arXiv 2309.17425, Table 1). Reads a model's embeddings of the pool, and embeds
the trusted set with it. The negatives are samples of the pool that are drawn by their uids. Those among them that
belong to the trusted set, by uid or by the bytes of the image, stay and are counted: of so small a share the classifier
learns no worse, and which samples are taken as negatives then depends on nothing but the draw.

Output column: `score`, float64, exact (`operators.filters.binary`); null where an embedding is missing.

Legend: N rows, D dimensions.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from operators.errors import InputError
from operators.filters.binary import LinearClassifier, balanced_accuracy, fit_classifier, logits
from operators.uids import split_uids
from pipeline.artifact import Artifact, parquet_bytes, read_columns
from pipeline.columns import embeddings, present, scatter, uid_rows
from pipeline.filters.drawing import Drawn, draw_rows
from pipeline.filters.files import TrainedFilter, filter_bytes
from pipeline.filters.memory import check_room
from pipeline.models import decide_precision, model_identity
from pipeline.run import Modality, Plan, Read, Run
from pipeline.spread import spread
from pipeline.steps.learned import Learned
from pipeline.storage import Store
from pipeline.units import Unit, read_unit

_COPIES = 3
"""Of the rows while they are read, put in order and laid side by side."""
_MODALITIES: dict[str, tuple[Modality, ...]] = {"image": ("image",), "text": ("text",), "both": ("image", "text")}


class BinaryEmbeddings(Learned):
    """Settings of the step: those of `Learned`, and these.

    Attributes:
        model: whose embeddings are looked at.
        modality: of the images, of the captions, or of both side by side.
        negatives: samples of the pool to learn from; as many as are trusted unless given.
        l2: how far the weights are held back; with n samples in all, scikit-learn's C is 1 / (n l2).
    """

    applied: ClassVar[frozenset[str]] = Learned.applied | {"model", "modality"}
    told: ClassVar[frozenset[str]] = frozenset({"model", "modality"})

    step: Literal["binary_embeddings"]
    model: str
    modality: Literal["image", "text", "both"] = "image"
    negatives: int | None = Field(default=None, ge=2)
    l2: float = Field(default=1e-4, gt=0, allow_inf_nan=False)

    def embeddings(self) -> Sequence[tuple[str, Modality]]:
        """The model's, of one modality or both."""
        return [(self.model, modality) for modality in _MODALITIES[self.modality]]

    def check_trained(self, trained: TrainedFilter) -> None:
        """Whether a filter was trained on embeddings of the same modality."""
        super().check_trained(trained)
        if (theirs := trained.settings["modality"]) != self.modality:
            raise InputError(f"{self.title}.modality must be {theirs}, as in {trained.place}, got {self.modality}")

    def check_scored(self, run: Run, trained: TrainedFilter) -> None:
        """Whether a filter was trained on embeddings of the same model."""
        if (theirs := trained.settings["model"]) != (own := self._looked_at(run)["model"]):
            raise InputError(f"{self.title}.model must be that of {trained.place}, which is {theirs}, got {own}")

    def plan_training(self, run: Run, trusted: Run, identity: Mapping[str, Any]) -> Plan:
        """All embeddings of the pool, of which negatives are drawn."""
        return run.plan(f"{self.title}.training", identity, self._rows(run), reduces=True)

    def train(self, plan: Plan, trusted: Run) -> bytes:
        """Draws negatives, and fits the classifier in one task."""
        run = plan.run
        theirs = trusted.plan(plan.name, {}, self._rows(trusted), reduces=True)
        positives = draw_rows(theirs, plan.name, self._usable)
        self.check_number("trusted", positives.count, trusted.samples.rows, f"{self.modality} embeddings")
        negatives = draw_rows(plan, f"{self.title}.negatives", self._usable, self.negatives or positives.count)
        self.check_number("negatives", negatives.count, run.num_entering, f"{self.modality} embeddings")
        self._check_room(plan, positives.count + negatives.count)
        gather = partial(gather_rows, run.store, f"{plan.folder}/rows")
        folders = [
            sorted(filter(None, spread(partial(gather, name, drawn), units, workers=run.workers)))
            for name, drawn, units in (("trusted", positives, theirs.units), ("pool", negatives, plan.units))
        ]
        (data,) = spread(
            partial(_fit, run.store, self.l2, self._looked_at(run)), [folders], workers=1, num_cpus=run.threads
        )
        run.store.remove(f"{plan.folder}/rows")
        return data

    def score_reads(self, run: Run) -> Sequence[Read]:
        """The embeddings."""
        return [Read(run.embeddings[need], {"embedding": need[1]}) for need in self.embeddings()]

    def score(self, plan: Plan, trained: TrainedFilter, info: Mapping[str, Any]) -> Artifact:
        """A logit for each row."""
        return plan.map_attributes(partial(score_rows, self.modality, classifier_of(trained)), info=info)

    def _rows(self, run: Run) -> list[Read]:
        names = {"uid": "uid", "image_hash": "image_hash"}
        return [Read(run.samples, names), *self.score_reads(run)]

    def _check_room(self, plan: Plan, count: int) -> None:
        """Raises InputError where the embeddings that are to be learnt from would not fit into one task."""
        found = [plan.run.embeddings[need] for need in self.embeddings()]
        each = sum(sum(part.size for part in one.parts) / max(1, one.total("kept")) for one in found)
        what = f"{_COPIES} times {count:,} rows of {each / 1024:.1f} KiB"
        check_room(plan.name, int(_COPIES * count * each), what, "lower negatives, or give fewer trusted samples")

    @property
    def _usable(self) -> Any:
        return partial(embedded, self.modality)

    def _looked_at(self, run: Run) -> dict[str, str]:
        model = model_identity(decide_precision(run.models[self.model]))
        return {"model": model, "modality": self.modality}


def embedded(modality: str, table: pa.Table) -> NDArray[np.bool_]:
    """Bool_N: which rows have all the embeddings that are looked at."""
    has_N = np.ones(table.num_rows, dtype=bool)
    for name in _MODALITIES[modality]:
        has_N &= present(table[name])
    return has_N


def stored_rows(modality: str, table: pa.Table) -> NDArray[np.float16]:
    """X_ND: the embeddings of rows that have them, side by side where there are two."""
    return np.concatenate([embeddings(table[name]) for name in _MODALITIES[modality]], axis=1)


def score_rows(modality: str, classifier: LinearClassifier, table: pa.Table) -> pa.Table:
    """The logit of every row that has the embeddings."""
    has_N = embedded(modality, table)
    score_M = logits(classifier, stored_rows(modality, table.filter(pa.array(has_N))))
    return pa.table({"score": scatter(pa.array(score_M, pa.float64()), has_N)})


def classifier_of(trained: TrainedFilter) -> LinearClassifier:
    """The classifier in a file."""
    return LinearClassifier(trained.tensors["weights"], float(trained.tensors["bias"][0]))


def gather_rows(store: Store, folder: str, name: str, drawn: Drawn, unit: Unit) -> str | None:
    """Writes the rows of one shard that were drawn; gives the path, or None where there are none."""
    table, _ = read_unit(store, unit)
    table = table.filter(pa.array(drawn.of(table)))
    if not table.num_rows:
        return None
    path = f"{folder}/{name}/{unit.id}.parquet"
    store.replace(path, parquet_bytes(table))
    return path


def _fit(store: Store, l2: float, looked_at: Mapping[str, str], paths: Sequence[Sequence[str]]) -> bytes:
    """The file of the classifier that tells the rows of two sets of files apart."""
    trusted, pool = (_by_uid(pa.concat_tables([read_columns(store, path) for path in some])) for some in paths)
    positive_PD, negative_QD = (stored_rows(looked_at["modality"], table) for table in (trusted, pool))
    classifier = fit_classifier(positive_PD, negative_QD, l2)
    training = {
        "trusted": len(positive_PD),
        "negatives": len(negative_QD),
        "negatives_trusted": _count_shared(trusted, pool),
        "balanced_accuracy": balanced_accuracy(logits(classifier, positive_PD), logits(classifier, negative_QD)),
    }
    tensors = {"weights": classifier.weights_D, "bias": np.array([classifier.bias])}
    return filter_bytes("binary_embeddings", tensors, looked_at, training)


def _by_uid(table: pa.Table) -> pa.Table:
    """The rows in the order of their uids, so that no sum depends on the shards that they came from."""
    high_N, low_N = split_uids(uid_rows(table["uid"]))
    return table.take(pa.array(np.lexsort((low_N, high_N)))).combine_chunks()


def _count_shared(trusted: pa.Table, pool: pa.Table) -> int:
    """How many rows of the pool are samples of the trusted set: the same uid, or the same bytes of an image."""
    shared = [pc.is_in(pool[name], trusted[name].drop_null()) for name in ("uid", "image_hash")]
    return pc.sum(pc.or_(*shared)).as_py() or 0
