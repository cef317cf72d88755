"""The folder of a comparison: what else may lie in it, and what is replaced there."""

from collections.abc import Iterator, Mapping, Sequence

from operators.errors import WorkspaceError
from pipeline.comparison.results import RESULTS, read_comparison
from pipeline.comparison.settings import Comparison, Kept, Like, Selection
from pipeline.embed import samples_folder, samples_id
from pipeline.evaluation.results import RESULTS as EVALUATED
from pipeline.listing import list_shards
from pipeline.pool import Pool
from pipeline.record import RECORD, read_record
from pipeline.storage import Store
from pipeline.training.finished import MODEL
from pipeline.training.metrics_log import METRICS
from pipeline.weights import ORIGIN_NAME

_OTHERS = {METRICS: "a training", f"{MODEL}/{ORIGIN_NAME}": "a training", EVALUATED: "an evaluation"}
"""What only other kinds of jobs leave at the top of their folders."""


def places(pool: Pool) -> tuple[str, ...]:
    """Where a pool lies, its paths absolute."""
    return tuple(sorted(source.path for source in pool.sources))


def check_workspace(config: Comparison) -> None:
    """Refuses the folder of another kind of job, or of a job on another pool.

    A curation of the same pool shares its steps with the comparison, and shows it in its report. An earlier comparison
    of the pool is gone on with, whatever its settings: see `replaced`.

    Raises:
        WorkspaceError: it is such a folder.
        InputError: the pool is not there.
    """
    config = config.resolved()
    store, ours = config.store, set(places(config.pool))
    rule = "must be a folder of the comparison's own, or of a curation of its pool"
    for name, kind in _OTHERS.items():
        if store.exists(name):
            raise WorkspaceError(f"workspace {rule}, got {store.url}, which holds {kind} ({name})")
    for name, kind, theirs in _pools(store):
        if theirs and ours.isdisjoint(theirs) and not _was_read(store, config.pool):
            what = f"{kind} of another pool, {', '.join(theirs)}"
            raise WorkspaceError(f"workspace {rule}, got {store.url}, which holds {what} ({name})")


def replaced(config: Comparison) -> str:
    """What to say of an earlier comparison in the folder that had other settings; empty where there is none.

    Args:
        config: of the job.
    """
    earlier = read_comparison(config.store)
    if earlier is None:
        return ""
    kinds = {name: _kinds(selection) for name, selection in config.selections.items()}
    ours = _words(kinds, config.seeds, config.training.num_steps * config.training.batch_size)
    theirs = {selection.name: selection.kinds for selection in earlier.selections}
    before = _words(theirs, earlier.seeds, earlier.samples_seen)
    return "" if ours == before else f"replaces the results of an earlier comparison in {config.store.url}: {before}"


def _kinds(selection: Selection) -> tuple[str, ...]:
    """As `Selected.kinds`."""
    if isinstance(selection, Like):
        return ("random",)
    return selection.kinds if isinstance(selection, Kept) else tuple(step.step for step in selection)


def _was_read(store: Store, pool: Pool) -> bool:
    """Whether the pool was read into a workspace, from wherever it lay then."""
    first = samples_id(pool, list_shards(pool)[0])
    return store.exists(f"{samples_folder(pool)}/{first}/part.json")


def _words(kinds: Mapping[str, Sequence[str]], seeds: Sequence[int], samples_seen: int) -> str:
    selections = ", ".join(f"{name} ({' + '.join(steps)})" if steps else name for name, steps in kinds.items())
    return f"{selections}; seeds {', '.join(map(str, seeds))}; {samples_seen:,} samples seen"


def _pools(store: Store) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Of which pools a workspace holds something: the file that says so, the kind of job, and where the pool was."""
    if store.exists(RECORD):
        sources = read_record(store)["config"]["pool"]["sources"]
        yield RECORD, "a curation", sorted(source["path"] for source in sources)
    if earlier := read_comparison(store):
        yield RESULTS, "a comparison", earlier.pool
