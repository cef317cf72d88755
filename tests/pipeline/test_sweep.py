"""`sweep` against what the steps that it stands for do by themselves, on Ray."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from operators.errors import ConfigError, InputError
from pipeline.artifact import read_columns
from pipeline.clustering import KMeansSettings
from pipeline.run import NotPublished
from pipeline.steps.clusters import Fit, cluster, fit_of
from pipeline.steps.prune.density import DensityPrune
from pipeline.steps.semantic_dedup import SemanticDedup
from pipeline.steps.sweep import Sweep, measure_clusters
from tests.embedded_pools import embedded_run, lumps, uid_of

EPSILONS = (0.002, 0.01, 0.05)
TEMPERATURES = (0.001, 0.01, 1.0)


def sweep(**values) -> Sweep:
    settings = {"model": "raw", "clusters": [3, 6], "epsilons": EPSILONS, "temperatures": TEMPERATURES}
    return Sweep.model_validate({"step": "sweep", "iterations": 3, **settings, **values})


def fit(sizes: list[int], similarity: list[float]) -> Fit:
    return Fit(np.eye(len(sizes)), np.array(similarity), np.array(sizes), (0.5,), 7)


def test_clusters_by_hand():
    assert measure_clusters(4, fit([2, 0, 2, 4], [1.5, 0.0, 2.0, 3.5])) == {
        "k": 4,
        "inertia": 1 - 7 / 8,
        "iterations": 7,
        "empty": 1,
        "sizes": {"min": 2, "q1": 2, "median": 2, "q3": 4, "max": 4},
        "effective": pytest.approx(2**1.5),
        "largest_share": 0.5,
    }


def test_quotas_by_hand():
    """Densities 0.5 and 0 (d_inter is 1 everywhere) favour cluster 0: all of it, unless the temperature is high."""
    points = sweep(temperatures=[0.01, 1e6]).measure_quotas(fit([10, 40, 0], [5.0, 40.0, 0.0]), 20)
    sharp, flat = points
    assert (sharp["temperature"], flat["temperature"]) == (0.01, 1e6)
    assert sharp["kept_share"] == {"min": 0.25, "q1": 0.25, "median": 0.25, "q3": 1.0, "max": 1.0}
    assert (sharp["whole"], sharp["at_floor"]) == (1, 0)
    assert flat == {**sharp, "temperature": 1e6}  # ten of each: equal quotas are whole for the small one
    assert flat["effective"] == pytest.approx(2)


def test_quotas_at_the_floor():
    (point,) = sweep(temperatures=[0.01]).measure_quotas(fit([10, 40], [5.0, 40.0]), 5)
    assert point["kept_share"]["min"] == 1 / 40
    assert (point["whole"], point["at_floor"]) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": [6, 3]}, "clusters must rise, got 6, 3"),
        ({"epsilons": [0.01, 0.01]}, "epsilons must rise, got 0.01, 0.01"),
        ({"temperatures": [1.0, 0.1]}, "temperatures must rise"),
        ({"dedup_clusters": 4}, "dedup_clusters must be one of clusters (3, 6), got 4"),
        ({"quota_clusters": 4}, "quota_clusters must be one of clusters (3, 6), got 4"),
        ({"metric": "euclidean"}, "metric must be spherical"),
        ({"epsilons": [], "neighbour_clusters": 2}, "must be left out with epsilons [], got 2"),
        ({"epsilons": [], "dedup_clusters": 3}, "must be left out with epsilons [], got 3"),
        ({"temperatures": [], "quota_clusters": 3}, "must be left out with temperatures [], got 3"),
        ({"density": "uniform", "neighbours": 3}, "must be left out with density uniform, got 3"),
        ({"clusters": [3, 20_001], "init": "kmeans||"}, "init must be random for more than 20,000 clusters"),
        ({"clusters": []}, "at least 1 item"),
        ({"temperatures": [0.0]}, "greater than 0"),
        ({"epsilons": [1e-4]}, "greater than or equal to 0.0005"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ValidationError) as error:
        sweep(**changes)
    assert message in str(error.value)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
class TestOnRay:
    """Runs over pools that are embedded already."""

    def test_it_says_what_the_steps_would_do(self, tmp_path):
        x_ND = lumps(300, 8)
        x_ND[7] = 0
        run = embedded_run(tmp_path, x_ND)
        step = sweep(dedup_clusters=6, quota_clusters=3, keep_fraction=0.5, neighbours=2, class_balance=0.3)
        artifact = step.run(run)
        numbers = json.loads(run.store.read(artifact.info["sweep"]))
        assert {name: artifact.info[name] for name in numbers} == numbers
        assert numbers["rows"] == 300
        table = [read_columns(run.store, part.path).to_pydict() for part in artifact.parts]
        uids = [u for part in run.samples.parts for u in read_columns(run.store, part.path, ["uid"])["uid"].to_pylist()]
        assert [point["k"] for point in numbers["clusters"]] == [3, 6]
        for point in numbers["clusters"]:
            cluster_N = [number for columns in table for number in columns[f"k{point['k']}"]]
            assert [uids[i] for i, number in enumerate(cluster_N) if number is None] == [uid_of(7)]
            sizes = np.bincount([number for number in cluster_N if number is not None], minlength=point["k"])
            assert point["empty"] == (sizes == 0).sum()
            assert sorted(sizes)[point["empty"]] == point["sizes"]["min"]
            assert max(sizes) == point["sizes"]["max"]
            assert point["largest_share"] == max(sizes) / 299
            shares = sizes[sizes > 0] / 299
            assert point["effective"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
        inertia = [point["inertia"] for point in numbers["clusters"]]
        assert inertia == sorted(inertia, reverse=True)

        dedup = SemanticDedup(
            step="semantic_dedup", model="raw", clusters=6, iterations=3, epsilon=0.01, epsilons=EPSILONS
        )
        alone = dedup.model_copy(update={"name": "sweep.k6"}).run(run)  # finds that clustering
        removed = alone.info["removed"]
        assert sum(removed) > 20
        assert numbers["epsilons"]["k"] == 6
        assert [point["removed"] for point in numbers["epsilons"]["points"]] == removed
        assert [point["share"] for point in numbers["epsilons"]["points"]] == [gone / 300 for gone in removed]

        clusters = cluster(run, "sweep.k3", "raw", KMeansSettings(clusters=3, iterations=3))
        assert clusters.reused
        assert (numbers["temperatures"]["k"], numbers["temperatures"]["keep"]) == (3, 150)
        settings = {"model": "raw", "clusters": 3, "keep": 150, "neighbours": 2, "class_balance": 0.3}
        for point in numbers["temperatures"]["points"]:
            settings["temperature"] = point["temperature"]
            prune = DensityPrune.model_validate({"step": "prune", "method": "dbp", **settings})
            table = prune.quotas(fit_of(run.store, clusters.info), 150)
            shares = np.divide(table["quota"], table["size"])
            a, b, c = sorted(shares)
            assert point["kept_share"] == {"min": a, "q1": a, "median": b, "q3": c, "max": c}
            assert point["whole"] == (shares == 1).sum()

    def test_nothing_depends_on_workers_threads_or_the_order_of_shards(self, tmp_path):
        said = []
        for workers, threads, order in [(1, 1, [0, 1, 2, 3]), (3, 1, [3, 1, 2, 0]), (4, 4, [2, 3, 0, 1])]:
            folder = tmp_path / f"{workers}{threads}"
            run = embedded_run(folder, lumps(200, 8, seed=1), workers=workers, threads=threads, order=order)
            said.append(run.store.read(sweep(clusters=[4]).run(run).info["sweep"]))
        assert said[0] == said[1] == said[2]

    def test_what_is_there_is_found_again(self, tmp_path):
        run = embedded_run(tmp_path, lumps(100, 8))
        first = sweep().run(run)
        assert (first.total("in"), first.total("kept"), first.rows) == (100, 100, 100)
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        run.dry = True
        again = sweep().run(run)
        assert (again.reused, again.digest, again.info) == (True, first.digest, first.info)
        with pytest.raises(NotPublished, match=r"^sweep$"):
            sweep(temperatures=[0.5]).run(run)  # the clusterings and the deduplication are there
        run.dry = False
        other = sweep(temperatures=[0.5]).run(run)
        assert other.folder != first.folder
        assert other.info["clusters"] == first.info["clusters"]
        new = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()} - {"sweep"}
        assert new == {path.relative_to(tmp_path).parts[0] for path in files} - {"sweep"}
        assert {path: path.stat().st_mtime_ns for path in files} == files

    def test_parts_can_be_left_out(self, tmp_path):
        run = embedded_run(tmp_path, lumps(60, 8))
        info = sweep(clusters=[4], epsilons=[], temperatures=[]).run(run).info
        assert info["epsilons"] is info["temperatures"] is None
        assert [point["k"] for point in info["clusters"]] == [4]

    def test_more_clusters_than_rows(self, tmp_path):
        with pytest.raises(InputError, match=r"sweep\.clusters must be at most the 5 rows that enter the step, got 6"):
            sweep().run(embedded_run(tmp_path, lumps(5, 8)))

    def test_fewer_embeddings_than_samples_to_keep(self, tmp_path):
        x_ND = lumps(60, 8)
        x_ND[20:] = 0
        with pytest.raises(ConfigError, match="sweep: the number of samples to keep must be between 0 and"):
            sweep(clusters=[4], epsilons=[], keep_fraction=0.9).run(embedded_run(tmp_path, x_ND))
