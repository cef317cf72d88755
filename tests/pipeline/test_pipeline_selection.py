import os
import signal

import numpy as np
import pytest

from operators.errors import InputError
from operators.selection import is_kept, order_key
from pipeline.selection import KeyHolder, exact_cutoffs

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]
MAX = (1 << 64) - 1
NUM_GROUPS = 40


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    group = rng.integers(0, NUM_GROUPS, 20_000).astype(np.int32)
    value = np.round(rng.normal(size=20_000), 2)  # many ties
    return group, order_key(value, descending=True), *rng.integers(0, MAX, (2, 20_000), np.uint64)


@pytest.fixture(scope="module")
def quotas(rows):
    sizes = np.bincount(rows[0], minlength=NUM_GROUPS)
    return np.random.default_rng(1).integers(0, sizes + 1)


def loaders_of(rows, num_parts, seed):
    """The rows in another order, in parts of unequal size, the last one empty."""
    order = np.random.default_rng(seed).permutation(rows[0].size)
    cuts = np.sort(np.random.default_rng(seed).integers(0, order.size, num_parts - 1)).tolist()
    return [lambda part=part: tuple(column[part] for column in rows) for part in [*np.split(order, cuts), order[:0]]]


def kept_by_sorting(rows, quotas):
    group, *words = rows
    kept = np.zeros(group.size, bool)
    for g, quota in enumerate(quotas):
        members = np.flatnonzero(group == g)
        kept[members[np.lexsort([w[members] for w in reversed(words)])][:quota]] = True
    return kept


@pytest.mark.parametrize("num_actors", [1, 3, 7])
def test_exactly_the_best_for_any_number_of_actors(rows, quotas, num_actors):
    rule = exact_cutoffs(loaders_of(rows, 9, seed=num_actors), quotas, num_actors)
    np.testing.assert_array_equal(is_kept(rule, *rows), kept_by_sorting(rows, quotas))


def test_cutoffs_themselves_do_not_depend_on_the_split(rows, quotas):
    one, other = (exact_cutoffs(loaders_of(rows, parts, seed=parts), quotas) for parts in (1, 5))
    np.testing.assert_array_equal(one.last_G3, other.last_G3)
    np.testing.assert_array_equal(one.some_G, other.some_G)


def test_no_parts():
    assert not exact_cutoffs([], np.zeros(3, np.int64)).some_G.any()


def test_user_errors_reach_the_driver(rows):
    with pytest.raises(InputError, match="group 0 must be between 0 and its"):
        exact_cutoffs(loaders_of(rows, 2, seed=0), np.full(NUM_GROUPS, 10**6))


def test_an_actor_that_dies_starts_again(rows, quotas, tmp_path):
    counted = KeyHolder.count_digits

    def die_once(self, search):
        if not (marker := tmp_path / "died").exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return counted(self, search)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyHolder, "count_digits", die_once)
        rule = exact_cutoffs(loaders_of(rows, 3, seed=0), quotas, num_actors=2)
    assert (tmp_path / "died").exists()
    np.testing.assert_array_equal(is_kept(rule, *rows), kept_by_sorting(rows, quotas))
