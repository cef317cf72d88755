"""`semantic_dedup` against brute force over the compared pairs, on Ray."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from scipy.sparse.csgraph import connected_components

from pipeline.artifact import Artifact, publish_part, read_columns
from pipeline.parts import Part
from pipeline.run import Plan
from pipeline.steps.clusters import fit_of
from pipeline.steps.semantic_dedup import SemanticDedup
from tests.embedded_pools import embedded_run, lumps, uid_of, verdicts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]

EPSILONS = [0.002, 0.01, 0.05]


def settings(**values) -> SemanticDedup:
    values = {"model": "raw", "clusters": 5, "epsilon": 0.01, "epsilons": EPSILONS, **values}
    return SemanticDedup.model_validate({"step": "semantic_dedup", **values})


def brute(run, step, x_ND):
    """Kept, duplicate_of, group size and removed counts, pair by pair."""
    clusters = step_clusters(run, step)
    fit = fit_of(run.store, clusters.info)
    table = [read_columns(run.store, part.path).to_pydict() for part in clusters.parts]
    cluster_N = np.array([c if c is not None else -1 for t in table for c in t["cluster"]])
    similarity_N = np.array([s if s is not None else np.nan for t in table for s in t["similarity"]])
    uids = [u for part in run.samples.parts for u in read_columns(run.store, part.path, ["uid"])["uid"].to_pylist()]
    rows = [next(i for i in range(len(x_ND)) if uid_of(i) == u) for u in uids]
    x_ND = x_ND[rows]
    sign = {"hard": 1, "easy": -1}[step.keep]
    order = sorted((i for i in range(len(uids)) if x_ND[i].any()), key=lambda i: (sign * similarity_N[i], uids[i]))
    exact = np.clip(x_ND.astype(float) @ x_ND.astype(float).T, -1, 1)
    centroids = fit.centroids_KD.astype(np.float16).astype(float)
    near_clusters = {(c, c) for c in range(len(centroids))}
    for c in range(len(centroids)):
        others = sorted((d for d in range(len(centroids)) if d != c), key=lambda d: (-(centroids[c] @ centroids[d]), d))
        for d in others[: step.neighbour_clusters]:
            near_clusters |= {(c, d), (d, c)}
    removed, chosen = [], None
    for epsilon in sorted({*EPSILONS, step.epsilon}):
        kept, first, graph = [], {}, np.zeros((len(uids), len(uids)), bool)
        for place, i in enumerate(order):
            for j in order[:place]:
                if (cluster_N[i], cluster_N[j]) in near_clusters and exact[i, j] > 1 - epsilon:
                    graph[i, j] = True
                    if (step.mode == "reference" or j in kept) and i not in first:
                        first[i] = j
            if i not in first:
                kept.append(i)
        removed.append(len(first))
        if epsilon == step.epsilon:
            labels = connected_components(graph, directed=False)[1]
            sizes = np.bincount(labels)[labels]
            chosen = {uids[i].hex(): (uids[j].hex(), exact[i, j], sizes[i]) for i, j in first.items()}
    return chosen, removed


def step_clusters(run, step):
    from pipeline.steps.clusters import cluster

    return cluster(run, step.title, step.model, step.kmeans)


@pytest.mark.parametrize(
    ("mode", "neighbours", "largest", "bin_bytes"),
    [("cover", 0, 1000, 10**9), ("reference", 2, 1000, 10**9), ("cover", 3, 60, 24_000)],
)
def test_it_agrees_with_brute_force(tmp_path, monkeypatch, mode, neighbours, largest, bin_bytes):
    monkeypatch.setattr("pipeline.steps.semantic_dedup._BIN_BYTES", bin_bytes)
    x_ND = lumps(300, 8)
    x_ND[7], x_ND[20:30], x_ND[270:280] = 0, x_ND[120], x_ND[9]
    run = embedded_run(tmp_path, x_ND)
    step = settings(mode=mode, neighbour_clusters=neighbours, largest=largest, keep="easy" if neighbours else "hard")
    artifact = step.run(run)
    said = verdicts(run, artifact)
    chosen, removed = brute(run, step, x_ND)
    assert {uid for uid, row in said.items() if not row["kept"]} == set(chosen)
    assert 20 < len(chosen) < 200
    for uid, (first, similarity, size) in chosen.items():
        row = said[uid]
        assert row["reason"] == "semantic_duplicate"
        assert (row["duplicate_of"], row["similarity"], row["group_size"]) == (first, similarity, size)
        assert said[first]["kept"] or mode == "reference"
    assert artifact.info["epsilons"] == EPSILONS
    assert artifact.info["removed"] == removed
    groups = [pq.read_table(tmp_path / path) for path in artifact.info["groups"]]
    members = [row for table in groups for row in table.to_pylist()]
    for group, rows in itertools.groupby(sorted(members, key=lambda row: row["group"]), key=lambda row: row["group"]):
        rows = list(rows)
        assert {row["size"] for row in rows} == {len(rows)}
        assert group in {row["uid"] for row in rows}
        assert all(row["kept"] == said[row["uid"]]["kept"] for row in rows)
    assert {row["uid"] for row in members} >= set(chosen)
    assert sum(artifact.info["group_sizes"]) == len({row["group"] for row in members})


def test_nothing_depends_on_workers_threads_bins_or_the_order_of_shards(tmp_path, monkeypatch):
    x_ND = lumps(400, 8, seed=3)
    said = []
    for number, (workers, threads, order, bin_bytes) in enumerate(
        [(1, 1, [0, 1, 2, 3], 10**9), (3, 1, [3, 1, 2, 0], 30_000), (4, 4, [2, 3, 0, 1], 10**9)]
    ):
        monkeypatch.setattr("pipeline.steps.semantic_dedup._BIN_BYTES", bin_bytes)
        run = embedded_run(tmp_path / str(number), x_ND, workers=workers, threads=threads, order=order)
        step = settings(neighbour_clusters=2, keep="random", largest=100 if number else 1000)
        artifact = step.run(run)
        said.append((verdicts(run, artifact), artifact.info["removed"], artifact.info["group_sizes"]))
    assert said[0] == said[1] == said[2]


def test_a_killed_attempt_leaves_nothing_that_counts(tmp_path, monkeypatch):
    x_ND, step = lumps(200, 8), settings(iterations=1)
    monkeypatch.setattr("pipeline.steps.semantic_dedup._BIN_BYTES", 20_000)
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "map_verdicts", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step.run(embedded_run(tmp_path, x_ND))
    monkeypatch.setattr("pipeline.steps.semantic_dedup._BIN_BYTES", 10**9)
    artifact = step.run(embedded_run(tmp_path, x_ND))
    undisturbed = step.run(embedded_run(tmp_path / "other", x_ND))
    assert group_rows(tmp_path, artifact) == group_rows(tmp_path / "other", undisturbed)
    assert [part.sha256 for part in artifact.parts] == [part.sha256 for part in undisturbed.parts]


def group_rows(folder, artifact):
    tables = [pq.read_table(folder / path) for path in artifact.info["groups"]]
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["uid"])


def test_of_several_the_best_score_stays(tmp_path):
    x_ND = np.tile(lumps(1, 8), (6, 1))
    run = embedded_run(tmp_path, x_ND, shards=2)
    parts = []
    for sample_part, scores in zip(run.samples.parts, [[0.5, None, 0.25], [0.75, 0.75, 0.0]], strict=True):
        table = pa.table({"score": pa.array(scores, pa.float64())})
        draft = Part(sample_part.shard, sample_part.id, "", 0, 0, "")
        parts.append(publish_part(run.store, "quality/x", draft, [table], table.schema))
    run.artifacts["quality"] = Artifact("quality", "quality/x", tuple(parts))
    said = verdicts(run, settings(clusters=1, keep="best_score", score="quality").run(run))
    best = min(uid_of(3), uid_of(4)).hex()
    assert [uid for uid, row in said.items() if row["kept"]] == [best]
    assert all(row["duplicate_of"] == best and row["group_size"] == 6 for uid, row in said.items() if uid != best)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilon": 1e-4}, "greater than or equal to 0.0005"),
        ({"metric": "euclidean"}, "metric must be spherical, since"),
        ({"search": "two_level"}, "search must be exact, since"),
        ({"merge": {"linkage": "average", "to": 2}}, "merge must be left out, since"),
        ({"keep": "best_score"}, "must name a score with keep best_score only, got keep best_score, score None"),
        ({"model": None}, "needs model"),
    ],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(ValidationError, match=message):
        settings(**values)
