"""Seeded schedules of faults against whole curations: whatever strikes, the outcome is that of an undisturbed run.

    python -m tests.faults.schedules [--seeds 20] [--first 0] [--case NAME]...

Each schedule runs a curation on a cluster of three raylets of this machine, in a folder or in an S3 bucket behind a
proxy that throttles, fails, resets and loses replies. At commits drawn from the seed, workers and drivers are killed,
nodes are lost, or stopped and woken when their work is long done, the disk is full, a second driver comes in. What died
is run again until it ends well. Then the ledger, the data of all artifacts and the exports must be those of an
undisturbed run, byte for byte, and nothing may be left over once `winnow clean` was here.
"""

import argparse
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import s3fs
from moto.server import ThreadedMotoServer

from pipeline.clean import sweep
from pipeline.progress import Progress
from pipeline.storage import Store
from pipeline.verify.workspace import verify
from tests.faults import cases
from tests.faults.attempts import DRIVER, EXIT, FROZEN, FULL, NODE, SECOND, WORKER, Attempts
from tests.faults.commits import Fault, Plan
from tests.faults.nodes import Nodes
from tests.faults.outcomes import WORK, Outcome, Tally, compare, read_names, read_outcome
from tests.faults.s3_proxy import FaultProxy, Faults

KINDS = {DRIVER: 4, WORKER: 3, EXIT: 2, NODE: 1, SECOND: 1, FROZEN: 1, FULL: 2}
"""How often each is drawn, against the others."""
ONCE = {NODE, SECOND, FROZEN}
"""Those that take long: at most one each in a schedule."""
SHARE = 0.6
"""Of the steps that are struck."""
S3_FAULTS = Faults(slow_down=0.03, internal=0.03, denied=0.02, reset=0.05, lost_reply=0.05, stale_list=0.05)

_BUCKET = "schedules"
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """Where the pool and the outputs of a schedule are: URLs, and what is needed to open them."""

    pool: str
    outputs: str
    storage: Mapping[str, Any]


@dataclass(frozen=True)
class Undisturbed:
    """What a case comes to where nothing strikes.

    Attributes:
        outcome: of it.
        names: of the files that `winnow clean` leaves in its workspace.
        plan: has counted its commits.
    """

    outcome: Outcome
    names: set[str]
    plan: Plan


class Harness:
    """All that schedules share; `open_harness` makes one.

    Args:
        folder: of this machine, for everything.
        nodes: of the cluster.
        server: URL of the S3 server that the proxies stand before.
    """

    def __init__(self, folder: Path, nodes: Nodes, server: str) -> None:
        self.folder = folder
        self.nodes = nodes
        self.server = server
        self._undisturbed: dict[tuple[str, bool], Undisturbed] = {}

    def run(self, case: str, seed: int, tally: Tally) -> None:
        """One schedule, added to a tally: in a folder where the seed is even, in a bucket where it is odd."""
        remote = seed % 2 == 1
        plan = self.undisturbed(case, remote=remote).plan
        with self._place(remote, replace(S3_FAULTS, seed=seed)) as (place, proxy):
            self._strike(place, proxy, case, f"{case}-{seed}", draw(seed, plan.commits()), tally)

    def strike(self, case: str, name: str, faults: list[Fault], tally: Tally) -> None:
        """A schedule of these very faults, in a folder, added to a tally."""
        with self._place(False, Faults()) as (place, _):
            self._strike(place, None, case, name, faults, tally)

    def undisturbed(self, case: str, *, remote: bool) -> "Undisturbed":
        """What a case comes to where nothing strikes."""
        if (case, remote) not in self._undisturbed:
            with self._place(remote, Faults()) as (place, _):
                attempts, home = self._finish(place, case, f"{case}-undisturbed-{remote}", [])
                counts = attempts.plan.commits()
                assert counts["samples"] > cases.SHARDS, f"the commits of workers must be counted, got {counts}"
                outcome = read_outcome(home)
                assert not (found := look_around(home)), found
                self._undisturbed[case, remote] = Undisturbed(outcome, read_names(home), attempts.plan)
        return self._undisturbed[case, remote]

    def _strike(
        self, place: Place, proxy: FaultProxy | None, case: str, name: str, faults: list[Fault], tally: Tally
    ) -> None:
        expected = self.undisturbed(case, remote=proxy is not None)
        attempts, home = self._finish(place, case, name, faults)
        tally.schedules += 1
        tally.runs += attempts.runs
        tally.faults += attempts.struck
        if proxy:
            tally.faults.update({f"s3: {fault}": count for fault, count in proxy.injected.items()})
            proxy.faults = Faults()
        compare(expected.outcome, read_outcome(home), name, tally)
        wrong = [*look_around(home), *(f"left over or lost: {file}" for file in expected.names ^ read_names(home))]
        tally.different += [f"{name}: {finding}" for finding in wrong]

    def _finish(self, place: Place, case: str, name: str, faults: list[Fault]) -> tuple[Attempts, Store]:
        """Runs a schedule; returns its runs and its folder."""
        home = Store(f"{place.outputs}/{name}", dict(place.storage))
        config = make_config(place, home.url, cases.models(self.folder, case), cases.steps(self.folder)[case])
        is_nightly = case == cases.NIGHTLY
        nights = cases.nights(place.pool) if is_nightly else [{}]
        config |= {"nightly": {}} if is_nightly else {}
        attempts = Attempts(self.folder / "schedules" / name, config, faults, self.nodes, nights)
        attempts.finish()
        return attempts, home

    @contextmanager
    def _place(self, remote: bool, faults: Faults) -> Iterator[tuple[Place, FaultProxy | None]]:
        if not remote:
            yield Place(f"{self.folder}/pool/pool/*.tar", f"{self.folder}/outputs", {}), None
            return
        with FaultProxy(self.server, faults) as proxy:
            storage = {"endpoint_url": proxy.url, "key": "k", "secret": "s"}
            yield Place(f"s3://{_BUCKET}/pool/*.tar", f"s3://{_BUCKET}/outputs", storage), proxy


def draw(seed: int, counts: Mapping[str, int]) -> list[Fault]:
    """The faults of a schedule.

    Args:
        seed: of the schedule.
        counts: commits of an undisturbed run, by step.
    """
    rng = random.Random(seed)
    kinds = dict(KINDS)
    faults = []
    for step, count in sorted(counts.items()):
        if rng.random() < SHARE:
            (kind,) = rng.choices(list(kinds), list(kinds.values()))
            if kind in ONCE:
                del kinds[kind]
            faults.append(Fault(step, rng.randrange(count), rng.random() < 0.5 and kind != FULL, kind))
    return faults


def make_config(place: Place, home: str, models: Mapping[str, Any], steps: Sequence[Any]) -> dict[str, Any]:
    """The config of a schedule. Models and lists lie on this machine, the pool and all that is written in `place`."""
    storage = {"storage": dict(place.storage)} if place.storage else {}
    pool = {"format": "webdataset", "path": place.pool, "max_reject_fraction": 1.0}
    exports = [("webdataset", "tars"), ("parquet", "tables"), ("uids", "subset.npy")]
    return {
        "pool": {**pool, **storage},
        "workspace": f"{home}/{WORK}",
        **storage,
        "models": dict(models),
        "steps": list(steps),
        "export": [{"format": format, "path": f"{home}/{name}", **storage} for format, name in exports],
        "resources": {"workers": 2},  # most of the time of a schedule, processes start
    }


def look_around(home: Store) -> list[str]:
    """What is damaged in the workspace of a schedule, and what `winnow clean` does not clean away."""
    store = replace(home, url=f"{home.url}/{WORK}")
    damage = verify(store, workers=2, progress=Progress()).damage
    sweep.delete(store, sweep.find(store, unused=False, hours=0.0))
    rest = sweep.find(store, unused=False, hours=0.0)
    return [f"damaged: {found}" for found in damage] + [f"left over: {found}" for found in rest]


@contextmanager
def open_harness(folder: Path) -> Iterator[Harness]:
    """Starts the cluster and the S3 server, and writes the inputs."""
    cases.write_inputs(folder)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    bucket = s3fs.S3FileSystem(endpoint_url=url, key="k", secret="s")
    bucket.makedirs(_BUCKET, exist_ok=True)  # one of an earlier harness of this process is there still
    for path in sorted((folder / "pool/pool").glob("*.tar")):
        bucket.pipe(f"{_BUCKET}/pool/{path.name}", path.read_bytes())
    before = os.environ.get("PYTHONPATH")
    # What drivers and workers import: the step of the inputs, this package, and what is importable here.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(_ROOT), *([before] if before else [])])
    nodes = Nodes()
    try:
        ray.init(address=nodes.cluster.address, log_to_driver=False)
        yield Harness(folder, nodes, url)
    finally:
        nodes.wake()
        ray.shutdown()
        nodes.cluster.shutdown()
        server.stop()
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def main(argv: Sequence[str] | None = None) -> int:
    """Runs schedules and prints a table for each case; 1 when anything was lost, doubled, left visible or different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many schedules for each case")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--case", action="append", help="only this one")
    options = parser.parse_args(argv)
    good = True
    with tempfile.TemporaryDirectory(prefix="winnow-faults-") as name, open_harness(Path(name)) as harness:
        for case in options.case or ("curation", "learned", cases.NIGHTLY):
            tally = Tally()
            for seed in range(options.first, options.first + options.seeds):
                started, one = time.monotonic(), Tally()
                harness.run(case, seed, one)
                tally.add(one)
                seconds = time.monotonic() - started
                end = "as undisturbed" if one.good else one.show()
                print(
                    f"{case} {seed}: {one.faults.total()} faults, {one.runs} runs, {seconds:.0f} s, {end}", flush=True
                )
            print(f"== {case}\n{tally.show()}", flush=True)
            good = good and tally.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
