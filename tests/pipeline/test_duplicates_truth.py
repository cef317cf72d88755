"""Duplicates of generated pools: the steps against the truth, and the benchmark's own arithmetic by hand."""

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.near_duplicates import (
    ENCODER,
    EPSILON,
    PIXELS,
    TEMPERATURE,
    VIEWS,
    Trial,
    Truth,
    draw_views,
    nt_xent,
    score_exact,
    score_semantic,
)
from pipeline.generate import generate_pool
from pipeline.pool_plan import PoolSettings


@pytest.mark.ray
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_duplicates_are_all_found_and_copies_nearly_all(ray_here, tmp_path, seed):
    pool = PoolSettings(samples=600, samples_per_shard=200, seed=seed, broken=False, near_fraction=0.25)
    trial = Trial(tmp_path, Truth(generate_pool(tmp_path / "data", pool)), {"pixels": PIXELS}, clusters=8, workers=2)
    exact = trial.exact()
    assert (exact.removed, exact.precision, exact.recall) == (36, 1.0, {"exact": 1.0})
    found = trial.semantic("pixels", EPSILON["pixels"], neighbours=2)
    assert found.precision >= 0.98
    assert found.recall["copies"] >= 0.95
    assert found.recall["mirrored"] < 0.5  # pixels do not see through a mirror, and nothing here says that they do


def truth():
    """Picture a: an exact copy a2, a3 recompressed, a4 resized, a5 mirrored. Picture b: b2 recompressed. Picture c."""
    edits = {"a2": "exact", "a3": "recompressed", "a4": "resized", "a5": "mirrored", "b2": "recompressed"}
    names = ["a", "a2", "a3", "a4", "a5", "b", "b2", "c"]
    originals = [name[0] if name in edits else None for name in names]
    table = {"uid": names, "duplicate_of": originals, "edit": [edits.get(name) for name in names]}
    return Truth(pa.table(table))


def test_exact_duplicates_must_be_the_same_bytes():
    assert score_exact(truth(), {"a": "a2"}).recall == {"exact": 1.0}
    found = score_exact(truth(), {"a": "a2", "a3": "a2"})
    assert (found.removed, found.precision, found.recall) == (2, 0.5, {"exact": 1.0})
    nothing = score_exact(truth(), {})
    assert (nothing.removed, nothing.precision, nothing.recall) == (0, 1.0, {"exact": 0.0})


def test_a_copy_is_found_when_it_or_for_it_its_original_goes():
    entered = ["a2", "a3", "a4", "a5", "b", "b2", "c"]
    found = score_semantic(truth(), entered, {"a2": "a3", "a4": "a3", "b2": "c", "c": "a5"})
    assert (found.removed, found.precision) == (4, 0.5)
    assert found.recall["recompressed"] == 0.5  # a3, for which the original's exact copy went; b2 went for c
    assert found.recall["resized"] == 1.0
    assert found.recall["mirrored"] == 0.0
    assert found.recall["copies"] == 2 / 3
    assert found.recall["cropped"] == 1.0  # of none


def test_a_copy_that_stays_is_missed_though_its_original_went_for_another():
    found = score_semantic(truth(), ["a", "a3", "a4"], {"a": "a3"})
    assert (found.recall["recompressed"], found.recall["resized"], found.precision) == (1.0, 0.0, 1.0)


def test_the_loss_is_the_mean_over_rows_of_the_partner_against_all_others():
    import torch

    x_ND = np.random.default_rng(0).standard_normal((6, 4))
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    losses = []
    for i in range(6):
        logits = {j: unit_ND[i] @ unit_ND[j] / TEMPERATURE for j in range(6) if j != i}
        losses.append(np.log(sum(np.exp(value) for value in logits.values())) - logits[(i + 3) % 6])
    assert nt_xent(torch.from_numpy(x_ND)).item() == pytest.approx(np.mean(losses))


def test_the_views_of_a_picture_are_itself_and_changed_copies():
    pool = PoolSettings(samples=20, broken=False)
    views_VHWC = draw_views(pool, 3).astype(int)
    assert views_VHWC.shape == (VIEWS, ENCODER["image_size"], ENCODER["image_size"], 3)
    np.testing.assert_array_equal(views_VHWC, draw_views(pool, 3))
    for copy_HWC in views_VHWC[1:]:
        assert 0 < np.abs(copy_HWC - views_VHWC[0]).mean() < 0.5 * np.abs(draw_views(pool, 4)[0] - views_VHWC[0]).mean()
