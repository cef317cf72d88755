"""A curation on nodes of unequal shapes: what runs where, and that it changes nothing."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline import curate, kmeans, kmeans_worker, spread
from pipeline.artifact import Artifact
from pipeline.curation import Curation
from pipeline.run import Run
from pipeline.storage import Store
from pipeline.stream import flow
from tests.faults.outcomes import Outcome, read_outcome
from tests.small_pools import sound, write_tar

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::ResourceWarning")]

SHARDS, SAMPLES = 6, 12
STAGES = {"read", "decode", "encode", "write", "k-means", "spread"}


def config(pool: Path, home: Path, resources: dict[str, int]) -> Curation:
    return Curation.model_validate(
        {
            "pool": {"format": "webdataset", "path": f"{pool}/*.tar", "chunk_samples": 4},
            "workspace": f"{home}/work",
            "models": {"raw": {"library": "pixels", "size": 8}},
            "steps": [{"step": "prune", "method": "dbp", "model": "raw", "clusters": 4, "keep_fraction": 0.5}],
            "report": False,
            "resources": resources,
        }
    )


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    samples = sound(SHARDS * SAMPLES)
    for number in range(SHARDS):
        write_tar(folder / f"{number}.tar", samples[number * SAMPLES : (number + 1) * SAMPLES])
    return folder


@pytest.fixture(scope="module")
def expected(pool, tmp_path_factory, no_ray) -> Outcome:
    """Of the same curation on one machine."""
    home = tmp_path_factory.mktemp("one")
    curate.run_curation(config(pool, home, {"workers": 2, "object_store_bytes": 200_000_000}))
    return read_outcome(Store(str(home)))


@pytest.fixture(scope="module")
def nodes(expected) -> Iterator[dict[str, str]]:
    """A head without CPUs, a node of 3, and one of a CPU and a GPU, which no CUDA knows of; their names by id."""
    node = {"object_store_memory": 150_000_000, "num_gpus": 0}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False})
    names = {
        cluster.head_node.node_id: "head",
        cluster.add_node(**node, num_cpus=3).node_id: "cpus",
        cluster.add_node(**node | {"num_gpus": 1}, num_cpus=1).node_id: "gpu",
    }
    ray.init(address=cluster.address, log_to_driver=False)
    yield names
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def places(nodes, tmp_path, monkeypatch) -> Callable[[], dict[str, set[str]]]:
    """Returns, when asked, on which nodes each stage has run."""
    folder = tmp_path / "places"
    folder.mkdir()

    # Made here, so that they travel to the workers as they are: those know nothing of the tests.
    def note(stage: str) -> None:
        (folder / f"{stage}@{ray.get_runtime_context().get_node_id()}").touch()

    def noting(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            note(stage)
            return function(*args)

        return noted

    class Encode(flow.EncodeChunks):
        def __call__(self, *args):
            note("encode")
            return super().__call__(*args)

    class Worker(kmeans_worker.Worker):
        def step(self, *args):
            note("k-means")
            return super().step(*args)

    for stage, function in (("read", "_read"), ("decode", "decode_chunk"), ("write", "write_piece")):
        monkeypatch.setattr(flow, function, noting(stage, getattr(flow, function)))
    monkeypatch.setattr(flow, "EncodeChunks", Encode)
    monkeypatch.setattr(kmeans, "Worker", Worker)
    monkeypatch.setattr(spread, "_run_group", noting("spread", spread._run_group))

    def found() -> dict[str, set[str]]:
        where = defaultdict(set)
        for path in folder.iterdir():
            stage, node = path.name.split("@")
            where[stage].add(nodes[node])
        return dict(where)

    return found


@pytest.fixture
def freed(monkeypatch) -> list[str]:
    """The artifacts after which, the run going on, the GPU became free."""
    after = []

    def run_steps(run: Run, steps: Sequence[Any]) -> Iterator[Artifact]:
        for artifact in steps_of(run, steps):
            until = time.monotonic() + 30
            while ray.available_resources().get("GPU", 0) < 1:
                assert time.monotonic() < until, f"{artifact.step} keeps the GPU"
                time.sleep(0.05)
            after.append(artifact.step)
            yield artifact

    steps_of = curate.run_steps
    monkeypatch.setattr(curate, "run_steps", run_steps)
    return after


def test_what_needs_no_gpu_stays_off_its_node_and_models_and_k_means_are_on_it(pool, tmp_path, expected, places, freed):
    curate.run_curation(config(pool, tmp_path / "run", {"workers": 3}))
    on_gpu = {"encode", "k-means"}
    assert places() == {stage: {"gpu" if stage in on_gpu else "cpus"} for stage in STAGES}
    assert freed == ["samples", "unique_uid", "prune"]
    assert read_outcome(Store(f"{tmp_path}/run")) == expected


@pytest.mark.long
def test_a_run_that_may_use_no_gpu_takes_none_and_uses_all_cpus(pool, tmp_path, expected, places):
    curate.run_curation(config(pool, tmp_path / "run", {"gpus": 0}))
    where = places()
    assert where.keys() == STAGES
    assert set().union(*where.values()) == {"cpus", "gpu"}
    assert read_outcome(Store(f"{tmp_path}/run")) == expected
