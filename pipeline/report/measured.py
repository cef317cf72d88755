"""What was measured of a curation besides its own run, as sections of its report: trainings on it, and the truth."""

from pipeline.comparison.page import sections
from pipeline.comparison.results import RESULTS, read_comparison
from pipeline.report.page import Block, Cell, Column, Section, Table, number, percent
from pipeline.storage import Store
from pipeline.truth import TRUTH, Checked, Share, read_checked


def measured_sections(store: Store) -> list[Section]:
    """The sections of what a workspace holds: a comparison's, and those of a generated pool's truth."""
    comparison, checked = read_comparison(store), read_checked(store)
    return [*(sections(comparison) if comparison else []), *([_truth_section(checked)] if checked else [])]


def measured(store: Store) -> list[str]:
    """What these sections are made from."""
    return [store.read(name).decode() for name in (RESULTS, TRUTH) if store.exists(name)]


def _truth_section(checked: Checked) -> Section:
    intro = (
        f"The pool was generated, so the answers are known. {checked.score} tells true captions from false ones with a "
        f"ROC AUC of {checked.auc:.4f} ({number(checked.scored)} samples that it scored). Captions are false for "
        f"{percent(checked.misaligned.count, checked.misaligned.of)} of the sound samples of the pool, and for "
        f"{percent(checked.misaligned_kept.count, checked.misaligned_kept.of)} of those that were kept."
    )
    columns = (
        Column("step", numeric=False),
        Column("measure", numeric=False),
        Column("share", share=True),
        Column("samples"),
        Column("of"),
    )
    rows = [
        (Cell(found.step, found.step), Cell(name, name), *_cells(share))
        for found in checked.duplicates
        for name, share in (
            ("precision", found.precision),
            ("recall", found.recall),
            *((f"recall, {edit}", share) for edit, share in found.by_edit.items()),
        )
    ]
    blocks: list[Block] = [Table("Duplicates", columns, tuple(rows))] if rows else []
    return Section("truth", "Against the truth", intro, tuple(blocks), label="Truth")


def _cells(share: Share) -> tuple[Cell, Cell, Cell]:
    return (
        Cell(percent(share.count, share.of) if share.of else "-", share.value),
        Cell(number(share.count), share.count),
        Cell(number(share.of), share.of),
    )
