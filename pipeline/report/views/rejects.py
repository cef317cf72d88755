"""Samples that could not be used, and shards that could not be read to their end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from operators.rejects import Damage, Reason
from pipeline.report.page import Bar, Bars, Block, Cell, Column, Gallery, Section, Table, number, percent
from pipeline.report.views.base import Seen
from pipeline.report.views.verdicts import StepFacts, Verdicts
from pipeline.summary import Summary

_DAMAGED_ROWS = 100

_MEANINGS: Mapping[str, str] = {
    Reason.MISSING_IMAGE: "there is no image",
    Reason.MISSING_TEXT: "there is no caption",
    Reason.UNDECODABLE_IMAGE: "the image does not decode, or is empty",
    Reason.IMAGE_TOO_LARGE: "the image has more than pool.max_pixels",
    Reason.MEMBER_TOO_LARGE: "a file is larger than pool.max_member_bytes",
    Reason.BAD_JSON: "the metadata is not JSON",
    Reason.BAD_TEXT_ENCODING: "the caption is not UTF-8",
    Reason.BAD_ROW: "the row cannot be read",
    Reason.BAD_EMBEDDING: "the image embedding has no direction: it is zero or not finite",
    Reason.DUPLICATE_KEY: "one key has two files of the same kind",
    Reason.SPLIT_KEY: "the key returns later in the shard",
    Reason.UNSAFE_NAME: "the name leads outside the shard, or is a link",
    Reason.DUPLICATE_UID: "an earlier sample has the same uid",
}
_DAMAGES: Mapping[str, str] = {
    Damage.TRUNCATED: "cut short; what came before the cut was used",
    Damage.UNREADABLE: "unreadable",
    Damage.MISSING: "missing",
}


@dataclass(frozen=True)
class Rejects(Verdicts):
    """What `unique_uid` turned away; `damaged` is shard -> its reason and message."""

    shown: ClassVar[int] = 5

    damaged: Mapping[str, Mapping[str, str]]

    def section(self, seen: Seen) -> Section | None:
        """Counts, examples and damaged shards; None when the pool was sound."""
        if not self.facts.reasons and not self.damaged:
            return None
        blocks: list[Block] = [self.reason_bars()] if self.facts.reasons else []
        blocks += [self._damaged_table()] if self.damaged else []
        blocks += [
            Gallery(reason, examples, _MEANINGS.get(reason, ""), "rejected", wide=False)
            for reason in self.facts.reasons
            if (examples := seen.examples(reason, self.title))
        ]
        lost, seen_rows = self.facts.lost, self.facts.rows_in
        intro = (
            f"{number(lost)} of {number(seen_rows)} samples ({percent(lost, seen_rows)}) could not be used. "
            "Each one is in the ledger with its reason."
        )
        return Section("rejects", "Samples that could not be used", intro, tuple(blocks), label="Rejected")

    def reason_bars(self) -> Bars:
        """How many samples each fault cost, and what it means."""
        most = max(self.facts.reasons.values())
        bars = [
            Bar(reason, count, count / most, _MEANINGS.get(reason, "")) for reason, count in self.facts.reasons.items()
        ]
        return Bars("Why samples were rejected", tuple(bars), tone="rejected")

    def _damaged_table(self) -> Table:
        rows = [
            tuple(Cell(text, text) for text in (shard, _DAMAGES[damage["reason"]], damage["message"]))
            for shard, damage in list(self.damaged.items())[:_DAMAGED_ROWS]
        ]
        note = f"The first {_DAMAGED_ROWS} of {number(len(self.damaged))}." if len(self.damaged) > len(rows) else ""
        columns = tuple(Column(label, numeric=False) for label in ("shard", "state", "message"))
        return Table("Damaged shards", columns, tuple(rows), note)


def make_rejects(summary: Summary) -> Rejects:
    """The view of the samples that never entered a step."""
    seen, rejected = summary.samples_seen, dict(summary.rejected)
    facts = StepFacts("unique_uid", "Rejected", "", seen, seen - sum(rejected.values()), rejected)
    return Rejects(facts, summary.shards_damaged)
