"""What a curation of a generated pool got right: its ledger and its score against `truth.parquet`.

Only what any user has is looked at: the ledger, the column of a score step, and the answers; nothing of how either was
made. `truth.json` in the workspace holds what was found, and `report.html` shows it.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from operators.evaluation.ranking import roc_auc
from pipeline.artifact import read_columns
from pipeline.console import print_table
from pipeline.ledger import read_ledger
from pipeline.progress import Progress
from pipeline.record import open_run
from pipeline.storage import Store, to_json

TRUTH = "truth.json"

_EXACT = "exact_dedup"
"""Finds files of the same pixels; every other step that names what a sample is a `duplicate_of` finds pictures."""


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """In [0, 1]; 1 of none."""
        return self.count / self.of if self.of else 1.0


@dataclass(frozen=True)
class Duplicates:
    """What a step did about duplicates.

    Attributes:
        step: its title.
        precision: of the samples it removed, those that went for another one of the same picture.
        recall: of the samples that show what another one shows, among those that came to the step, those it removed.
        by_edit: the same, by how a copy was made: of the copies whose original came to the step as well.
    """

    step: str
    precision: Share
    recall: Share
    by_edit: Mapping[str, Share]


@dataclass(frozen=True)
class Checked:
    """What was right.

    Attributes:
        score: of a score step: how well it tells true captions from false ones.
        auc: the area under its ROC curve.
        scored: samples that have the score and a known answer.
        misaligned: sound samples of the pool whose caption is false.
        misaligned_kept: of the kept samples.
        duplicates: by step.
    """

    score: str
    auc: float
    scored: int
    misaligned: Share
    misaligned_kept: Share
    duplicates: Sequence[Duplicates]


def check_truth(store: Store, truth: pa.Table, score: str) -> Checked:
    """Holds the latest run of a workspace against the truth, and writes `truth.json`.

    Args:
        store: the workspace.
        truth: the pool's, see `pipeline.generate`.
        score: title of a score step.

    Raises:
        WorkspaceError: no run has finished here.
    """
    answers = {row["uid"]: row for row in truth.to_pylist() if row["expected"] == "ok"}
    ledger = [row for table in read_ledger(store) for row in table.to_pylist() if row["uid"] in answers]
    run, _ = open_run(store, workers=1, progress=Progress())
    steps = [artifact.step for artifact in run.verdicts[1:]]
    scores: dict[str, float] = {}
    for samples, part in zip(run.samples.parts, run.artifacts[score].parts, strict=True):
        uids = read_columns(store, samples.path, ["uid"])["uid"].to_pylist()
        values = read_columns(store, part.path, ["score"])["score"].to_pylist()
        scores |= {uid.hex(): value for uid, value in zip(uids, values, strict=True) if value is not None}
    known = [uid for uid in answers if uid in scores]
    aligned_N = np.array([answers[uid]["aligned"] for uid in known], dtype=bool)
    kept = [row["uid"] for row in ledger if row["verdict"] == "kept"]
    checked = Checked(
        score=score,
        auc=roc_auc(aligned_N, np.array([scores[uid] for uid in known])),
        scored=len(known),
        misaligned=_misaligned(answers, answers),
        misaligned_kept=_misaligned(answers, kept),
        duplicates=[duplicates_of(answers, ledger, steps, step) for step in steps if _removes_duplicates(ledger, step)],
    )
    store.replace(TRUTH, to_json(asdict(checked)))
    return checked


def read_checked(store: Store) -> Checked | None:
    """What `check_truth` found in a workspace, if anything."""
    try:
        record = json.loads(store.read(TRUTH))
    except FileNotFoundError:
        return None
    shares = {name: Share(**record[name]) for name in ("misaligned", "misaligned_kept")}
    duplicates = [
        Duplicates(
            found["step"],
            Share(**found["precision"]),
            Share(**found["recall"]),
            {edit: Share(**share) for edit, share in found["by_edit"].items()},
        )
        for found in record["duplicates"]
    ]
    return Checked(**record | shares | {"duplicates": duplicates})


def print_checked(checked: Checked) -> None:
    """Prints what was right."""
    shares = [("false captions", "in the pool", checked.misaligned), ("", "among the kept", checked.misaligned_kept)]
    for found in checked.duplicates:
        shares += [(found.step, "precision", found.precision), ("", "recall", found.recall)]
        shares += [("", f"recall, {edit}", share) for edit, share in found.by_edit.items()]
    rows: list[tuple[object, ...]] = [(checked.score, "ROC AUC, true captions", checked.auc, None, checked.scored)]
    rows += [(step, what, share.value, share.count, share.of) for step, what, share in shares]
    print_table(("against the truth", "", "share", "samples", "of"), rows)


def _misaligned(answers: Mapping[str, Any], uids: Collection[str]) -> Share:
    return Share(sum(not answers[uid]["aligned"] for uid in uids), len(uids))


def _removes_duplicates(ledger: Sequence[Mapping[str, Any]], step: str) -> bool:
    return any(row["step"] == step and "duplicate_of" in json.loads(row["detail"]) for row in ledger)


def duplicates_of(
    answers: Mapping[str, Any], ledger: Sequence[Mapping[str, Any]], steps: Sequence[str], step: str
) -> Duplicates:
    """What a step did about duplicates, by the ledger.

    Args:
        answers: rows of the truth by uid.
        ledger: rows of these uids.
        steps: titles of all that judged, in order.
        step: one of them.
    """
    earlier = set(steps[: steps.index(step)]) | {"samples"}
    came = [row["uid"] for row in ledger if row["step"] not in earlier]
    partner = {row["uid"]: json.loads(row["detail"])["duplicate_of"] for row in ledger if row["step"] == step}
    edits = {uid: answers[uid]["edit"] for uid in answers}
    picture = {uid: answers[uid]["duplicate_of"] or uid for uid in answers}
    if step == _EXACT:
        picture = {uid: picture[uid] if edits[uid] in (None, "exact") else uid for uid in answers}
    right = {uid for uid, other in partner.items() if picture.get(other) == picture[uid]}
    repeated = sum(count - 1 for count in Counter(picture[uid] for uid in came).values())
    # Where the original did not come, an exact copy of it stands for it.
    original = {answers[uid]["duplicate_of"]: uid for uid in came if edits[uid] == "exact"}
    original |= {uid: uid for uid in came if edits[uid] is None}
    by_edit: dict[str, list[bool]] = {}
    for uid in came:
        first = original.get(answers[uid]["duplicate_of"])
        if edits[uid] and picture[uid] != uid and first not in (None, uid):
            by_edit.setdefault(edits[uid], []).append(uid in right or partner.get(str(first)) == uid)
    return Duplicates(
        step,
        precision=Share(len(right), len(partner)),
        recall=Share(len(right), repeated),
        by_edit={edit: Share(sum(hits), len(hits)) for edit, hits in sorted(by_edit.items())},
    )
