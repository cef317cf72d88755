"""A plan as people read it, and as programs do."""

from dataclasses import asdict
from typing import Any

from pipeline.console import print_table
from pipeline.plan.plan import Plan, PlannedStep
from pipeline.plan.work import Work

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_COLUMNS = ("step", "kind", "state", "rows in", "rows out", "read", "written", "CPU h", "GPU h", "$", "worker memory")


def print_plan(plan: Plan) -> None:
    """Prints the pool, a line for each step, the total, and what all that rests on."""
    print_table(("shards", "bytes", "samples"), [(plan.shards, plan.bytes, plan.samples)])
    print()
    rows = [_row(plan, step) for step in plan.steps]
    total = plan.total
    rows.append(("total", "", "", "", "", *_costs(plan, total)))
    print_table(_COLUMNS, rows)
    if plan.facts is None:
        print("\nnothing to do: every step is there")
        return
    facts, machines = plan.facts, plan.machines
    print(
        f"\nsampled: {facts.sampled_samples:,} samples of {facts.sampled_shards} shards were read, {facts.decoded:,} "
        f"decoded, on one core of this machine; {facts.reject_fraction:.1%} rejected"
    )
    where = f"{machines.cpus:,} CPUs" + (f" and {machines.gpus:,} {machines.gpu}" if machines.gpus else "")
    prices = f"${machines.cpu_price:g} a CPU hour" + (f", ${machines.gpu_price:g} a GPU hour" if machines.gpus else "")
    print(f"at {prices}, on {where}: {duration(plan.wall_seconds)} at the least, if nothing waits")
    print(f"its driver schedules {total.tasks:,.0f} tasks, and is busy for {duration(total.driver_seconds)}")
    print(f"left in the workspace and the exports: {size(total.stored)}")


def _row(plan: Plan, step: PlannedStep) -> tuple[object, ...]:
    rows_in = "-" if step.rows_in is None else f"{'≤ ' if step.is_bound else ''}{step.rows_in:,}"
    rows_out = "unknown" if step.rows_out is None else f"{'≤ ' if step.is_bound else ''}{step.rows_out:,}"
    if step.rows_in is None:
        rows_out = "-"
    costs = ("-",) * 6 if step.reused else _costs(plan, step.work)
    return step.name, step.kind, "reused" if step.reused else "to do", rows_in, rows_out, *costs


def _costs(plan: Plan, work: Work) -> tuple[str, ...]:
    hours = (f"{seconds / 3600:,.3g}" for seconds in (work.cpu_seconds, work.gpu_seconds))
    return size(work.read), size(work.written), *hours, f"{plan.dollars(work):,.3g}", size(work.worker_bytes)


def size(count: float) -> str:
    """Bytes for people: `1.2 GB`."""
    for unit in _UNITS[:-1]:
        if count < 999.5:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} {_UNITS[-1]}"


def duration(seconds: float) -> str:
    """A time for people: `12 s`, `3.4 h`, `2.1 days`."""
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"


def as_json(plan: Plan) -> dict[str, Any]:
    """All of a plan, in bytes, seconds and dollars. Its `rates` can be given to another plan."""
    steps = [{**asdict(step), "work": {**asdict(step.work), "dollars": plan.dollars(step.work)}} for step in plan.steps]
    total = {**asdict(plan.total), "dollars": plan.dollars(plan.total), "wall_seconds": plan.wall_seconds}
    return {
        "shards": plan.shards,
        "bytes": plan.bytes,
        "samples": plan.samples,
        "machines": asdict(plan.machines),
        "steps": steps,
        "total": total,
        "sampled": asdict(plan.facts) if plan.facts else None,
        "rates": plan.rates.model_dump() if plan.rates else None,
    }
