"""The measures of a curation against the truth, by hand; that they hold for a real run is the demo's test."""

import json

from pipeline.truth import Share, duplicates_of

ANSWERS = {
    "a": (None, None),
    "a2": ("a", "exact"),
    "a3": ("a", "recompressed"),
    "b": (None, None),
    "b2": ("b", "exact"),
    "b3": ("b", "resized"),
    "c": (None, None),
}


def answers():
    return {uid: {"duplicate_of": original, "edit": edit} for uid, (original, edit) in ANSWERS.items()}


def row(uid, verdict="kept", step=None, duplicate_of=None):
    detail = {"duplicate_of": duplicate_of} if duplicate_of else {}
    return {"uid": uid, "verdict": verdict, "step": step, "detail": json.dumps(detail)}


STEPS = ["rules", "exact_dedup", "near"]


def test_exact_duplicates_are_files_and_only_those_that_came():
    ledger = [
        row("a", "dropped", "exact_dedup", "a2"),  # either of the two may go
        row("a2"),
        row("a3", "dropped", "exact_dedup", "a2"),  # the same picture, and another file
        row("b", "dropped", "rules"),
        row("b2"),  # alone now, so no duplicate
        row("b3"),
        row("c"),
    ]
    found = duplicates_of(answers(), ledger, STEPS, "exact_dedup")
    assert (found.precision, found.recall) == (Share(1, 2), Share(1, 1))
    assert found.by_edit == {"exact": Share(1, 1)}


def test_near_duplicates_are_pictures():
    ledger = [
        row("a", "dropped", "exact_dedup", "a2"),
        row("a2", "dropped", "near", "a3"),  # for its copy
        row("a3"),
        row("b"),
        row("b2", "dropped", "exact_dedup", "b"),
        row("b3"),  # missed
        row("c", "dropped", "near", "b"),  # wrong
    ]
    found = duplicates_of(answers(), ledger, STEPS, "near")
    assert (found.precision, found.recall) == (Share(1, 2), Share(1, 2))
    assert found.by_edit == {"recompressed": Share(1, 1), "resized": Share(0, 1)}


def test_of_none_all_were_found():
    assert Share(0, 0).value == 1.0
    assert Share(1, 4).value == 0.25
