"""Writing `report.html` into the workspace of a run."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.given import second_looks
from pipeline.report.examples import Wanted, find_examples, rows_by_shard
from pipeline.report.history import Night, find_nights, history_sections
from pipeline.report.measured import measured, measured_sections
from pipeline.report.page import META_NAME, Headline, Report, Stage, asset_bytes, number, percent, render
from pipeline.report.scan import Unit, scan
from pipeline.report.views import make_views
from pipeline.report.views.base import Seen, settings_text
from pipeline.run import Run
from pipeline.snapshots import Snapshot
from pipeline.steps.base import Step
from pipeline.storage import Store, digest
from pipeline.summary import Summary

REPORT = "report.html"
REPORT_VERSION = 2

_META = re.compile(rf'<meta name="{META_NAME}" content="([0-9a-f]+)">')
_HEAD_BYTES = 4096


def write_report(
    run: Run, steps: Sequence[Step], summary: Summary, *, snapshot: Snapshot | None = None, name: str = REPORT
) -> bool:
    """Writes the report of a finished run, unless the one that is there was made from the same artifacts.

    Args:
        run: with all artifacts. Its shards are read for thumbnails.
        steps: of its config, in order.
        summary: its sums; times and exports do not matter.
        snapshot: that the run is, published or about to be.
        name: of the file.

    Returns:
        whether anything was written.
    """
    steps = [*steps, *(step for step in second_looks(steps) if step.title in run.artifacts)]
    nights = find_nights(run.store, snapshot)
    address = report_digest(run, steps, nights)
    if find_digest(run, name) == address:
        return False
    place = location(run.store)
    views = make_views(run, steps, summary, place)
    names = ["samples", "unique_uid", *(step.title for step in steps)]
    units = [
        Unit(i, {name: run.artifacts[name].parts[i].path for name in names}) for i in range(len(run.samples.parts))
    ]
    with run.progress.step("report", len(units), unit="shards") as progress:
        observations = scan(run.store, units, views, run.seed, run.workers)
        choices = (row for seen in observations for rows in seen.choices.values() for row in rows)
        wanted = [Wanted(units[i], run.shards[i], rows, tuple(names[1:])) for i, rows in rows_by_shard(choices).items()]
        found = find_examples(run.store, run.pool, wanted, run.workers)
        progress.advance(len(units))
    sections = [view.section(Seen(seen, found)) for view, seen in zip(views, observations, strict=True)]
    report = Report(
        title=place.rpartition("/")[2] or place,
        workspace=place,
        digest=address,
        headlines=headlines(summary),
        stages=funnel(run, steps, summary),
        sections=(
            *(section for section in sections if section),
            *history_sections(nights),
            *measured_sections(run.store),
        ),
    )
    run.store.replace(name, render(report))
    return True


def report_digest(run: Run, steps: Sequence[Step], nights: Sequence[Night] = ()) -> str:
    """Names everything that a report is made from."""
    artifacts = [run.artifacts[name] for name in ("samples", "unique_uid", *(step.title for step in steps))]
    return digest(
        REPORT_VERSION,
        hashlib.sha256(asset_bytes()).hexdigest(),
        location(run.store),
        run.seed,
        [artifact.digest for artifact in artifacts],
        [step.model_dump(mode="json") for step in steps],
        *measured(run.store),
        *([[asdict(night) for night in nights]] if nights else []),
    )


def location(store: Store) -> str:
    """Where a workspace lies, however it was called: an absolute path or a URL."""
    return store.path().rstrip("/") if store.is_local else store.url.rstrip("/")


def find_digest(run: Run, name: str = REPORT) -> str | None:
    """What the report that is there was made from; None when there is none."""
    try:
        with run.store.open(name) as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    match = _META.search(head)
    return match[1] if match else None


def headlines(summary: Summary) -> tuple[Headline, ...]:
    """The large numbers."""
    seen = summary.samples_seen
    dropped = sum(sum(reasons.values()) for reasons in summary.dropped.values())
    rejected = sum(summary.rejected.values())
    shown = [
        Headline(number(seen), "samples seen"),
        Headline(number(summary.kept), f"kept, {percent(summary.kept, seen)}", "kept"),
        Headline(number(dropped), f"dropped, {percent(dropped, seen)}", "dropped"),
        Headline(number(rejected), f"rejected, {percent(rejected, seen)}", "rejected"),
    ]
    if damaged := len(summary.shards_damaged):
        shown.append(Headline(number(damaged), "damaged shards" if damaged > 1 else "damaged shard", "rejected"))
    return tuple(shown)


def funnel(run: Run, steps: Sequence[Step], summary: Summary) -> tuple[Stage, ...]:
    """The pool, what could be used of it, and what each verdict step passed on."""
    seen = summary.samples_seen
    usable = seen - sum(summary.rejected.values())
    stages = [
        Stage("Pool", "every sample seen", "", seen, seen, seen),
        Stage("Usable", "readable, with a uid of its own", "rejects" if usable < seen else "", seen, usable, seen),
    ]
    for step in steps:
        if step.judges:
            artifact = run.artifacts[step.title]
            rows_in, rows_out = artifact.total("in"), artifact.total("kept")
            note = settings_text(step) or (step.step if step.title != step.step else "")
            stages.append(Stage(step.title, note, f"step-{step.title}", rows_in, rows_out, seen))
    return tuple(stages)
