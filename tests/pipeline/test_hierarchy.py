"""What follows k-means, on a real Ray over artifacts written by hand. Legend: N rows, K clusters, D dimensions."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from operators.certified import assign
from operators.concepts import merge_clusters
from operators.errors import InputError
from operators.hierarchical_quotas import hierarchical_quotas
from operators.kmeans import (
    initial_keys,
    lowest_keys,
    partial_sums,
    repair_empty,
    summed_similarity,
    unit_rows,
    update_centroids,
)
from operators.levels import Effort, cluster_level, derived_seed, nearest_members
from operators.uids import split_uids
from pipeline import hierarchy, resampling
from pipeline.artifact import Artifact, publish_part, read_columns
from pipeline.clustering import KMeansSettings
from pipeline.columns import embedding_field, fixed_binary
from pipeline.hierarchy import Merge, check_levels
from pipeline.parts import Part
from pipeline.pool import Pool
from pipeline.progress import Progress
from pipeline.resampling import Resampling
from pipeline.run import Run
from pipeline.steps.clustered import Clustered
from pipeline.steps.clusters import cluster, fit_of, load
from pipeline.steps.prune.hierarchical import HierarchicalPrune
from pipeline.storage import Store
from tests.local_ray import start_ray

pytestmark = pytest.mark.ray

ROWS, DIMS = 700, 16
MERGED = KMeansSettings(clusters=24, iterations=3, merge=Merge(to=7))
LEVELLED = KMeansSettings(clusters=30, iterations=3, levels=(8, 3), resampling=Resampling(rounds=2, points=6))


@pytest.fixture(scope="module", autouse=True)
def seven_actors_at_once(no_ray) -> None:
    start_ray(num_cpus=7)


def pool_rows() -> tuple[np.ndarray, np.ndarray]:
    """Unit rows, most of them in one crowd, and their uids."""
    generator = np.random.default_rng(0)
    x_ND = generator.standard_normal((ROWS, DIMS))
    x_ND[: ROWS * 3 // 4] = 2 * np.eye(DIMS)[0] + 0.4 * x_ND[: ROWS * 3 // 4]
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND.astype(np.float16), generator.integers(0, 256, (ROWS, 16), dtype=np.uint8)


def make_run(folder, *, workers: int = 3, threads: int = 1, shards: int = 5, seed: int = 0) -> Run:
    """A run over the rows, shuffled and cut into shards; every 50th row is an image that could not be embedded."""
    x_ND, uid_N16 = pool_rows()
    order_N = np.random.default_rng(seed).permutation(ROWS)
    store = Store(str(folder))
    pool = Pool.model_validate({"format": "webdataset", "path": str(folder)})
    run = Run(store, pool, [], seed=0, models={}, workers=workers, threads=threads, progress=Progress())
    parts: dict[str, list[Part]] = {"samples": [], "raw.image": []}
    for number, row_M in enumerate(np.array_split(order_N, shards)):
        columns = {
            "samples": (pa.field("uid", pa.binary(16)), pa.array([u.tobytes() for u in uid_N16[row_M]], pa.binary(16))),
            "raw.image": (embedding_field("embedding", DIMS), fixed_binary(x_ND[row_M], row_M % 50 != 0)),
        }
        for name, (field, column) in columns.items():
            table = pa.table([column], schema=pa.schema([field]))
            draft = Part(f"{number}.tar", f"p{number}", "", 0, 0, "")
            parts[name].append(publish_part(store, f"{name}/x", draft, [table], table.schema))
    run.artifacts |= {name: Artifact(name, f"{name}/x", tuple(mine)) for name, mine in parts.items()}
    run.embeddings["raw", "image"] = run.artifacts["raw.image"]
    return run


def by_uid(run: Run, artifact: Artifact, columns: list[str]) -> dict[bytes, tuple]:
    found = {}
    for sample, part in zip(run.samples.parts, artifact.parts, strict=True):
        uids = read_columns(run.store, sample.path, ["uid"])["uid"].to_pylist()
        rows = read_columns(run.store, part.path, columns).to_pylist()
        found |= {uid: tuple(row.values()) for uid, row in zip(uids, rows, strict=True)}
    return found


def embedded_rows() -> tuple[np.ndarray, np.ndarray]:
    """The rows that have an embedding, in the order of their uids."""
    x_ND, uid_N16 = pool_rows()
    has_N = np.arange(ROWS) % 50 != 0
    x_ND, uids = x_ND[has_N], [uid.tobytes() for uid in uid_N16[has_N]]
    order = sorted(range(len(uids)), key=uids.__getitem__)
    return x_ND[order], np.array([uids[i] for i in order], object)


ONE = {"workers": 1, "shards": 1}
THREE = {"workers": 3, "shards": 5, "seed": 1}
SEVEN = {"workers": 7, "shards": 9, "seed": 2}
FOUR_THREADS = {"workers": 4, "threads": 4, "shards": 3, "seed": 3}


@pytest.mark.parametrize(
    ("settings", "spreads"),
    [
        (MERGED, [ONE, SEVEN, FOUR_THREADS]),
        (LEVELLED.model_copy(update={"resampling": Resampling(rounds=1)}), [ONE, THREE]),
    ],
    ids=["merge", "levels"],
)
def test_same_bytes_for_any_workers_threads_and_shards(settings, spreads, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.run.ROWS_PER_ACTOR", 50)
    answers = []
    for number, spread in enumerate(spreads):
        run = make_run(tmp_path / str(number), **spread)
        artifact = cluster(run, "prune", "raw", settings)
        fit = run.store.read(artifact.info["fit"])
        answers.append((fit, by_uid(run, artifact, ["cluster", "similarity"])))
    assert all(answer == answers[0] for answer in answers)


def test_a_merge_equals_the_same_in_one_place(tmp_path):
    run = make_run(tmp_path)
    plain = fit_of(run.store, cluster(run, "plain", "raw", MERGED.model_copy(update={"merge": None})).info)
    artifact = cluster(run, "prune", "raw", MERGED)
    fit = fit_of(run.store, artifact.info)
    assert fit.inertia[:-1] == plain.inertia
    assert fit.inertia[-1] == pytest.approx(1 - fit.similarity_K.sum() / fit.sizes_K.sum())
    x_ND, uids = embedded_rows()
    cluster_N, _ = assign(x_ND, plain.centroids_KD)
    expected = merge_clusters(plain.centroids_KD, partial_sums(x_ND, cluster_N, 24), "average", to=7)
    assert fit.merged is not None
    np.testing.assert_array_equal(fit.merged.micro_KD, plain.centroids_KD)
    np.testing.assert_array_equal(fit.merged.concept_K, expected.concept_K)
    np.testing.assert_array_equal(fit.merged.merges_M4, expected.merges_M4)
    np.testing.assert_array_equal(fit.centroids_KD, expected.centroids_CD)
    np.testing.assert_array_equal(fit.sizes_K, expected.sizes_C)
    np.testing.assert_array_equal(fit.similarity_K, expected.similarity_C)
    found = by_uid(run, artifact, ["cluster", "similarity"])
    assert sum(cluster is None for cluster, _ in found.values()) == ROWS // 50
    for uid, concept, x_D in zip(uids, expected.concept_K[cluster_N], x_ND, strict=True):
        cosine = float(np.clip(x_D.astype(np.float64) @ expected.centroids_CD[concept], -1, 1))
        assert found[uid] == (concept, cosine)


def fit_in_one_place(x_ND, uids, k, seed):
    """The same k-means as a plain loop."""
    high_N, low_N = split_uids(np.frombuffer(b"".join(uids), np.uint8).reshape(-1, 16))
    centroids_KD = unit_rows(x_ND[lowest_keys(initial_keys(high_N, low_N, seed), k)])
    for _ in range(3):
        sums_KD, counts_K = partial_sums(x_ND, assign(x_ND, centroids_KD)[0], k)
        centroids_KD = repair_empty(update_centroids(sums_KD, counts_K, centroids_KD), counts_K)
    return centroids_KD


def test_levels_equal_the_same_in_one_place_also_after_a_stop(tmp_path, monkeypatch):
    run, calls, real = make_run(tmp_path), [], resampling.cluster_sums

    def stops_once(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(resampling, "cluster_sums", stops_once)
    with pytest.raises(KeyboardInterrupt):
        cluster(run, "prune", "raw", LEVELLED)
    fit = fit_of(run.store, cluster(run, "prune", "raw", LEVELLED).info)
    assert len(calls) == 3  # the round that was done is not done again

    x_ND, uids = embedded_rows()
    centroids_KD = fit_in_one_place(x_ND, uids, 30, 0)
    for number in range(2):
        kept_M = nearest_members(*assign(x_ND, centroids_KD), 6)
        centroids_KD = fit_in_one_place(x_ND[kept_M], uids[kept_M], 30, derived_seed(0, "round", str(number)))
    sums_KD, counts_K = partial_sums(x_ND, assign(x_ND, centroids_KD)[0], 30)
    np.testing.assert_array_equal(fit.centroids_KD, centroids_KD)
    np.testing.assert_array_equal(fit.sizes_K, counts_K)
    np.testing.assert_array_equal(fit.similarity_K, summed_similarity(sums_KD, centroids_KD))

    assert len(fit.parents) == 2
    for number, (k, parent_K) in enumerate(zip((8, 3), fit.parents, strict=True)):
        seed = derived_seed(0, "level", str(number))
        centroids_KD, expected_K = cluster_level(centroids_KD, k, Effort(3, 2, 6), seed=seed)
        np.testing.assert_array_equal(parent_K, expected_K)


def test_too_few_points_end_the_resampling(tmp_path, monkeypatch):
    monkeypatch.setattr(resampling, "cluster_sums", lambda *_: (np.eye(3), np.array([5, 0, 2])))
    plan = make_run(tmp_path).plan("prune.clusters", {}, [])
    settings = Resampling(rounds=3, points=1)  # two rows for three clusters
    assert resampling.resample(plan, load, np.eye(3), settings, never_fits).tolist() == np.eye(3).tolist()


def never_fits(load, *, seed, number):
    raise AssertionError


def test_hierarchical_pruning_keeps_the_quotas_of_each_level(tmp_path):
    run = make_run(tmp_path)
    step = HierarchicalPrune.model_validate(
        {
            "step": "prune",
            "method": "hierarchical",
            "model": "raw",
            "clusters": 30,
            "iterations": 3,
            "levels": [8, 3],
            "resampling": {"rounds": 0},
            "keep": 150,
            "members": "random",
        }
    )
    assert step.kmeans == LEVELLED.model_copy(update={"resampling": Resampling(rounds=0)})
    artifact = step.run(run)
    fit = fit_of(run.store, artifact.info)
    quota_K = hierarchical_quotas(fit.parents, fit.sizes_K, 150)
    table = read_columns(run.store, artifact.info["clusters"])
    assert table["quota"].to_pylist() == quota_K.tolist()
    rows = by_uid(run, artifact, ["kept", "reason", "detail"]).values()
    kept = [detail["cluster"] for kept, _, detail in rows if kept]
    assert np.bincount(kept, minlength=30).tolist() == quota_K.tolist()
    assert {reason for _, reason, _ in rows} == {None, "over_quota", "no_embedding"}


def test_more_concepts_than_clusters(tmp_path):
    with pytest.raises(InputError, match=r"^prune.merge.to must be at most clusters \(5\), got 9"):
        cluster(make_run(tmp_path), "prune", "raw", KMeansSettings(clusters=5, iterations=0, merge=Merge(to=9)))


def test_no_machine_with_the_memory_for_a_merge(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"memory": 80_000}}, {"Alive": False, "Resources": {"memory": 10**12}}]
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, {"Alive": True, "Resources": {}}])
    merge = Merge(to=2)
    hierarchy.check_refinement(KMeansSettings(clusters=100, merge=merge))
    hierarchy.check_refinement(KMeansSettings(clusters=101))
    with pytest.raises(ValueError, match=r"^clusters must be at most 100 where they are merged, .* got 101"):
        hierarchy.check_refinement(KMeansSettings(clusters=101, merge=merge))


def test_more_clusters_than_can_be_merged(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.hierarchy.MAX_ROWS", 4)
    monkeypatch.setattr("pipeline.kmeans.fit", never_fits)
    with pytest.raises(InputError, match=r"^prune.clusters must be at most 4 where they are merged, got 5"):
        cluster(make_run(tmp_path), "prune", "raw", KMeansSettings(clusters=5, iterations=0, merge=Merge(to=2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs exactly one of to and distance"),
        ({"to": 3, "distance": 0.1}, "needs exactly one of to and distance"),
        ({"to": 0}, "greater than or equal to 1"),
        ({"distance": 0}, "greater than 0"),
        ({"to": 3, "linkage": "median"}, "Input should be 'average', 'complete', 'single' or 'ward'"),
        ({"to": 3, "ratio": 1}, "Extra inputs are not permitted"),
    ],
)
def test_merge_settings_are_strict(settings, message):
    with pytest.raises(ValidationError, match=message):
        Merge.model_validate(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": []}, "at least 1 item"),
        ({"levels": [40]}, r"levels must fall from below clusters \(30\), got \[40\]"),
        ({"levels": [9, 9]}, r"levels must fall from below clusters \(30\), got \[9, 9\]"),
        ({"levels": [0]}, "levels must fall from below clusters"),
        ({"merge": {"to": 3}}, "merge must not be set for method hierarchical"),
        ({"metric": "euclidean"}, "metric must be spherical where"),
        ({"search": "two_level"}, "search must be exact where"),
        ({"clusters": "auto", "levels": [9, 9]}, r"levels must fall from below clusters \(auto\), got \[9, 9\]"),
        ({"clusters": "auto", "levels": [0]}, "levels must fall from below clusters"),
        ({"merge": {"to": 31}}, r"merge.to must be at most clusters \(30\), got 31"),
        ({"resampling": {"rounds": -1}}, "greater than or equal to 0"),
    ],
)
def test_level_settings_are_checked(changes, message):
    settings = {"step": "prune", "method": "hierarchical", "model": "raw", "clusters": 30, "keep": 5, "levels": [9, 3]}
    HierarchicalPrune.model_validate(settings)
    with pytest.raises(ValidationError, match=message):
        HierarchicalPrune.model_validate(settings | changes)


def test_levels_above_clusters_that_are_chosen_later(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.kmeans.fit", never_fits)
    check_levels("auto", [40, 3])
    settings = KMeansSettings(clusters="auto", levels=(40, 3))
    with pytest.raises(InputError, match=r"^prune.levels must fall from below clusters \(26\), got \[40, 3\]"):
        cluster(make_run(tmp_path), "prune", "raw", settings)


@pytest.mark.parametrize(
    ("merge", "message"),
    [({"to": 2}, "clusters must be at most 30,000 where they are merged, got 30,001"), ({"to": 40_000}, "30,001")],
)
def test_merges_are_checked_before_any_work(merge, message):
    with pytest.raises(ValidationError, match=message):
        Clustered.model_validate({"step": "any", "clusters": 30_001, "merge": merge})
    Clustered.model_validate({"step": "any", "clusters": 30_000, "merge": {"to": 2}})


def test_the_top_level_may_be_one_cluster():
    check_levels(3, [2, 1])


@pytest.mark.parametrize("changes", [{"merge": {"to": 2}}, {"levels": [2]}])
def test_what_concepts_and_levels_exclude(changes):
    with pytest.raises(ValidationError, match="metric must be spherical"):
        KMeansSettings.model_validate({"clusters": 5, "metric": "euclidean"} | changes)
    with pytest.raises(ValidationError, match="search must be exact"):
        KMeansSettings.model_validate({"clusters": 5, "search": "two_level"} | changes)
    assert not KMeansSettings.model_validate({"clusters": 500_000} | changes).two_level
