"""What a comparison found, drawn: `comparison.html`, and the sections that a curation's report takes from it."""

from pipeline.comparison.results import (
    Accuracy,
    ComparisonResult,
    Difference,
    SelectionFacts,
    TaskVerdict,
    difference_text,
    interval_text,
)
from pipeline.report.intervals import Line, draw_intervals
from pipeline.report.page import (
    Bar,
    Bars,
    Block,
    Cell,
    Chart,
    Column,
    Headline,
    Report,
    Section,
    Table,
    Tone,
    asset_bytes,
    number,
    percent,
    render,
)
from pipeline.steps.diversity import stages
from pipeline.storage import Store, digest

PAGE = "comparison.html"
PAGE_VERSION = 4

_ACCURACIES = {
    "seeds": "Dots are seeds and diamonds their means; a line is the 95\N{NO-BREAK SPACE}% interval of the mean "
    "(Student's t).",
    "test samples": "Dots are seeds and diamonds their means; a line is the 95\N{NO-BREAK SPACE}% interval of the mean "
    "over test samples (bootstrap), as so few seeds say little of others.",
}
_DIFFERENCES = (
    "Each seed with its own counterpart, so that what seeds have in common cancels out. The thick line is the "
    "95\N{NO-BREAK SPACE}% interval over seeds, the thin one that over test samples. A difference can be relied upon "
    "where both are clear of zero."
)
_OVER_SEEDS = (
    "Each seed with its own counterpart, so that what seeds have in common cancels out. A line is the "
    "95\N{NO-BREAK SPACE}% interval over seeds; the tasks have different test samples, so there is none over those."
)


def write_page(store: Store, result: ComparisonResult, content: bytes) -> None:
    """Writes the page of what `comparison.json` says."""
    place = (store.path() if store.is_local else store.url).rstrip("/")
    report = Report(
        title=place.rpartition("/")[2] or place,
        workspace=place,
        digest=digest(PAGE_VERSION, asset_bytes().decode(), content.decode()),
        headlines=headlines(result),
        stages=(),
        sections=tuple(sections(result)),
        kind="comparison",
    )
    page = render(report)
    if not (store.exists(PAGE) and store.read(PAGE) == page):
        store.replace(PAGE, page)


def headlines(result: ComparisonResult) -> tuple[Headline, ...]:
    """The large numbers, of the first task."""
    task = result.tasks[0]
    best = max(task.accuracies, key=lambda accuracy: accuracy.mean)
    return (
        Headline(percent(best.mean, 1), f"{task.metric} of {best.selection}", "kept"),
        Headline(percent(task.of(result.baseline).mean, 1), f"of {result.baseline}"),
        Headline(number(len(result.trained)), f"models, {len(result.seeds)} seeds of each selection"),
        Headline(number(result.samples_seen), "samples seen by each"),
    )


def sections(result: ComparisonResult) -> list[Section]:
    """One for each task, one for their mean, and one about the selections."""
    tasks = [*result.tasks, *([result.mean] if result.mean else [])]
    return [*(_task_section(result, task) for task in tasks), _selections_section(result)]


def _task_section(result: ComparisonResult, task: TaskVerdict) -> Section:
    intro = (
        f"One model, trained anew on {number(result.samples_seen)} samples from each selection with each of "
        f"{len(result.seeds)} seeds, and tested on {number(task.num_samples)} samples."
    )
    title = f"{task.metric} on {task.task}"
    blocks: list[Block] = [
        Chart(
            "By selection",
            draw_intervals(
                title, [accuracy_line(task, found, result.baseline) for found in task.accuracies], task.metric
            ),
            _ACCURACIES[result.over],
        )
    ]
    for theirs in dict.fromkeys(found.theirs for found in task.differences):
        lines = [_difference_line(found) for found in task.differences if found.theirs == theirs]
        drawn = draw_intervals(f"{title}, less that of {theirs}", lines, f"less {theirs}", zero=True)
        paired = all(found.over_samples for found in task.differences)
        blocks.append(Chart(f"Against {theirs}", drawn, _DIFFERENCES if paired else _OVER_SEEDS))
    blocks.append(_task_table(result, task))
    name = f"task-{task.task.replace(' ', '-')}"
    return Section(name, f"Trained and tested: {task.task}", intro, tuple(blocks), label=task.task)


def accuracy_line(task: TaskVerdict, found: Accuracy, baseline: str) -> Line:
    """How a selection did, coloured where it is clear that it did better or worse than the baseline."""
    tone: Tone = "plain"
    difference = task.difference(found.selection, baseline)
    if difference and difference.clear:
        tone = "kept" if difference.value > 0 else "dropped"
    return Line(found.selection, found.mean, found.shown, dots=found.values, tone=tone)


def _difference_line(found: Difference) -> Line:
    tone: Tone = "plain" if not found.clear else "kept" if found.value > 0 else "dropped"
    return Line(found.ours, found.value, found.over_seeds, thin=found.over_samples, tone=tone)


def _task_table(result: ComparisonResult, task: TaskVerdict) -> Table:
    others = list(dict.fromkeys(found.theirs for found in task.differences))
    columns = (
        Column("selection", numeric=False),
        Column(task.metric, share=True),
        Column("95 % interval", help=f"of the mean, over {result.over}"),
        *(Column(f"less {name}", help=f"with its 95 % interval over {result.over}, paired") for name in others),
        *(Column(f"seed {seed}") for seed in result.seeds),
    )
    rows = []
    for accuracy in task.accuracies:
        differences = [task.difference(accuracy.selection, name) for name in others]
        rows.append(
            (
                Cell(accuracy.selection, accuracy.selection),
                Cell(f"{accuracy.mean:.4f}", accuracy.mean),
                Cell(interval_text(accuracy.shown), accuracy.shown[0] if accuracy.shown else 0.0),
                *(Cell(difference_text(found, result.over), found.value if found else 0.0) for found in differences),
                *(Cell(f"{value:.4f}", value) for value in accuracy.values),
            )
        )
    return Table("All numbers", columns, tuple(rows))


def _selections_section(result: ComparisonResult) -> Section:
    most = max(selection.samples for selection in result.selections)
    bars = [
        Bar(found.name, found.samples, found.samples / most, " → ".join(found.kinds) or "the whole pool")
        for found in result.selections
    ]
    blocks: list[Block] = [Bars("Samples in each", tuple(bars), "kept", headings=("Selection", "Samples"))]
    blocks += [table for table in (_scores_table(result), _costs_table(result), _diversity_table(result)) if table.rows]
    intro = "What the models were trained on. " + " ".join(f"Warning: {warning}" for warning in result.warnings)
    return Section("selections", "The selections", intro.strip(), tuple(blocks))


def _scores_table(result: ComparisonResult) -> Table:
    columns = (
        Column("selection", numeric=False),
        Column("score", numeric=False),
        Column("mean", help="of the samples that were scored"),
        Column("mean of what is kept"),
    )
    rows = [
        (Cell(selection.name, selection.name), Cell(title, title), _number(means.pool), _number(means.kept))
        for selection in result.selections
        for title, means in selection.scores.items()
    ]
    return Table("Scores", columns, tuple(rows))


def _costs_table(result: ComparisonResult) -> Table:
    columns = (
        Column("selection", numeric=False),
        Column("step", numeric=False),
        Column(
            "seconds",
            help="when it was made; what selections share stands with each, and embeddings that were made while the "
            "pool was read stand with samples",
        ),
    )
    rows = [
        (Cell(selection.name, selection.name), Cell(title, title), Cell(f"{seconds:.1f}", seconds))
        for selection in result.selections
        for title, seconds in selection.seconds.items()
    ]
    return Table("What they cost", columns, tuple(rows))


def _diversity_table(result: ComparisonResult) -> Table:
    columns = (
        Column("selection", numeric=False),
        Column("effective clusters", help="exp of the entropy: how many clusters of equal size would be as diverse"),
        Column("of as many at random", help="the same number of as many samples of the pool, drawn at random"),
        Column("of the pool's", help="the same number of the whole pool"),
        Column("largest cluster", share=True, help="share of the samples in it"),
    )
    return Table("Diversity", columns, tuple(_diversity_row(found) for found in result.selections if found.diversity))


def _diversity_row(selection: SelectionFacts) -> tuple[Cell, ...]:
    assert selection.diversity is not None
    before, drawn, after = stages(selection.diversity)
    return (
        Cell(selection.name, selection.name),
        _number(after.effective),
        _number(drawn.effective),
        _number(before.effective),
        Cell(percent(after.largest_share, 1), after.largest_share),
    )


def _number(value: float) -> Cell:
    return Cell(number(value), value)
