import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from operators.errors import ConfigError, UserError
from operators.quotas import UNIT_BITS, balance_floor, lower_bounds, project, solve_quotas, water_fill


def quotas(probabilities, sizes, target, floor=1):
    return solve_quotas(np.array(probabilities, float), np.array(sizes, np.int64), target, floor).tolist()


@st.composite
def problems(draw, max_clusters=30, max_size=50):
    sizes = np.array(draw(st.lists(st.integers(0, max_size), min_size=1, max_size=max_clusters)), np.int64)
    weights = np.array(draw(st.lists(st.floats(0, 1), min_size=len(sizes), max_size=len(sizes)))) + 1e-6
    target = draw(st.integers(0, int(sizes.sum())))
    return weights / weights.sum(), sizes, target


def test_by_hand():
    # 10 wanted as (5, 3, 2); the first has 3 members only, so the others rise by 1 each.
    assert quotas([0.5, 0.3, 0.2], [3, 100, 100], 10) == [3, 4, 3]


def test_lower_bound_by_hand():
    # wanted (9, 1, 0); the last must keep 1, the second is on its bound already, so the first pays.
    assert quotas([0.9, 0.1, 0.0], [100, 100, 100], 10) == [8, 1, 1]


def test_largest_remainder_by_hand():
    # wanted (4.2, 3.5, 2.3): floors 4, 3, 2, and the missing one goes to the remainder .5.
    assert quotas([0.42, 0.35, 0.23], [10, 10, 10], 10) == [4, 4, 2]


def test_ties_go_to_the_lowest_id():
    assert quotas([0.25] * 4, [10] * 4, 6) == [2, 2, 1, 1]


def test_empty_clusters_keep_nothing_and_give_their_share_away():
    assert quotas([0.5, 0.25, 0.25], [0, 10, 10], 8) == [0, 4, 4]


@pytest.mark.parametrize(("target", "expected"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1])])
def test_target_below_the_number_of_clusters(target, expected):
    assert quotas([0.5, 0.3, 0.2], [10, 10, 10], target) == expected


def test_edges():
    assert quotas([1.0], [7], 7) == [7]
    assert quotas([], [], 0) == []
    assert quotas([0.5, 0.5], [0, 0], 0) == [0, 0]
    assert quotas([0.2, 0.8], [3, 4], 7) == [3, 4]


def test_floor():
    assert quotas([0.98, 0.01, 0.01], [100, 100, 2], 30, floor=5) == [23, 5, 2]


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (([0.5, 0.5], [3, 0], 4), r"between 0 and the 3 .* 1 non-empty clusters of 2, with 3 to 3 members\), got 4"),
        (([], [], 1), r"between 0 and the 0 that are there .* 0 clusters, all empty\), got 1"),
        (([0.5, 0.5], [3, 3], -1), r"got -1"),
        (
            ([0.5, 0.5], [30, 3], 9, 8),
            r"must be at most 6 to keep 9 samples, got 8: .* makes 11 .* 3 to 30 members",
        ),
        (([0.5, 0.5], [30, 3], 9, 0), r"at least 1, got 0"),
        (([0.5, 0.7], [30, 30], 9), r"sum to 1, got a sum of 1.2"),
        (([1.5, -0.5], [30, 30], 9), r"at least 0"),
        (([np.nan, 1], [30, 30], 9), r"got a sum of nan"),
    ],
)
def test_infeasible_problems_are_explained(problem, message):
    with pytest.raises(ConfigError, match=message) as caught:
        quotas(*problem)
    assert isinstance(caught.value, UserError)


@given(problems())
def test_sum_and_bounds(problem):
    probabilities, sizes, target = problem
    quotas_K = solve_quotas(probabilities, sizes, target)
    assert quotas_K.dtype == np.int64
    assert quotas_K.sum() == target
    assert (quotas_K <= sizes).all()
    assert (quotas_K >= (np.minimum(sizes, 1) if target >= np.count_nonzero(sizes) else 0)).all()


@given(problems(), st.floats(0, 1))
def test_balance_floor_is_always_feasible_and_respected(problem, class_balance):
    probabilities, sizes, target = problem
    floor = balance_floor(target, sizes.size, class_balance)
    quotas_K = solve_quotas(probabilities, sizes, target, floor)
    assert quotas_K.sum() == target
    if floor > 1:
        assert (quotas_K >= np.minimum(sizes, floor)).all()


@given(problems())
def test_more_probable_clusters_keep_no_less(problem):
    probabilities, sizes, target = problem
    quotas_K = solve_quotas(probabilities, np.full_like(sizes, sizes.max()), target)
    units_K = np.rint(probabilities * float(target << UNIT_BITS))  # less than a unit apart is equal
    ranked_K = quotas_K[np.argsort(-units_K, kind="stable")]
    assert (np.diff(ranked_K) <= 0).all()


@given(problems())
def test_one_sample_more_moves_one_quota_when_all_are_equal(problem):
    _, sizes, target = problem
    uniform = np.full(sizes.size, 1 / sizes.size)
    before, after = (solve_quotas(uniform, sizes, t) for t in (target, min(target + 1, int(sizes.sum()))))
    assert np.abs(after - before).sum() <= 1


@given(problems(max_clusters=4, max_size=5))
@settings(max_examples=60)
def test_optimal_among_all_integer_quotas(problem):
    probabilities, sizes, target = problem
    lowest = np.minimum(sizes, 1) if target >= np.count_nonzero(sizes) else np.zeros_like(sizes)
    choices = itertools.product(*(range(lo, hi + 1) for lo, hi in zip(lowest, sizes, strict=True)))
    cost = {c: float(((np.array(c) - probabilities * target) ** 2).sum()) for c in choices if sum(c) == target}
    found = solve_quotas(probabilities, sizes, target)
    assert cost[tuple(found.tolist())] <= min(cost.values()) + 1e-4  # units of 2^-20


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_a_general_solver(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 60, 12)
    wanted, lower, target = rng.dirichlet(np.full(12, 0.5)) * 150, np.minimum(sizes, 2), 150
    general = minimize(
        lambda x: ((x - wanted) ** 2).sum(),
        x0=sizes * target / sizes.sum(),
        jac=lambda x: 2 * (x - wanted),
        bounds=list(zip(lower, sizes, strict=True)),
        constraints={"type": "eq", "fun": lambda x: x.sum() - target, "jac": lambda x: np.ones(12)},
        method="SLSQP",
        options={"ftol": 1e-10, "maxiter": 500},
    )
    assert general.x.sum() == pytest.approx(target)
    scale = 1 << UNIT_BITS
    ours = project(np.rint(wanted * scale).astype(np.int64), lower << UNIT_BITS, sizes << UNIT_BITS, target * scale)
    np.testing.assert_allclose(ours / scale, general.x, atol=1e-3)


def test_large_and_skewed():
    rng = np.random.default_rng(0)
    sizes = rng.geometric(1e-4, 50_000)
    probabilities = rng.dirichlet(np.full(50_000, 0.1))
    quotas_K = solve_quotas(probabilities, sizes, int(sizes.sum()) // 3, floor=balance_floor(10**8, 50_000, 0.5))
    assert quotas_K.sum() == sizes.sum() // 3
    assert (quotas_K >= np.minimum(sizes, 1000)).all()
    assert (quotas_K <= sizes).all()


@pytest.mark.parametrize(
    ("target", "clusters", "balance", "expected"),
    [(1000, 10, 0.5, 50), (1000, 3, 0.5, 166), (10, 1, 0.7, 7), (100, 10, 0.0, 1), (5, 10, 1.0, 1), (9, 2, 1.0, 4)],
)
def test_balance_floor(target, clusters, balance, expected):
    assert balance_floor(target, clusters, balance) == expected


def test_balance_floor_refuses():
    with pytest.raises(ConfigError, match=r"class_balance must be in \[0, 1\], got 1.5"):
        balance_floor(10, 2, 1.5)


@given(problems())
def test_the_floor_that_is_called_feasible_is_the_highest_one(problem):
    _, sizes, target = problem
    with pytest.raises(ConfigError) as caught:
        lower_bounds(np.append(sizes, target + 99), target, target + 2)
    named = int(str(caught.value).split("at most ")[1].split(" ")[0])
    makes = [int(np.minimum(np.append(sizes, target + 99), floor).sum()) for floor in (named, named + 1)]
    assert makes[0] <= target < makes[1]


def test_proportional_shares_are_those_of_the_largest_remainders():
    # 60 % of (5, 3, 2) are (3, 1.8, 1.2): floors 3, 1, 1, and the missing one goes to the remainder .8.
    assert quotas(np.array([5, 3, 2]) / 10, [5, 3, 2], 6) == [3, 2, 1]
    # 10 % of (95, 3, 2): each cluster keeps one, the largest pays.
    assert quotas(np.array([95, 3, 2]) / 100, [95, 3, 2], 10) == [8, 1, 1]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.integers(1, 99))
def test_proportional_shares_are_within_one_of_exact_where_none_would_be_empty(sizes, percent):
    sizes = np.array(sizes, np.int64) + 100
    target = int(sizes.sum()) * percent // 100
    found = solve_quotas(sizes / sizes.sum(), sizes, target)
    assert (np.abs(found - sizes * target / sizes.sum()) < 1).all()


def test_water_fill_by_hand():
    sizes = np.array([[1, 5, 5], [3, 0, 9], [2, 2, 2], [0, 0, 0], [4, 4, 4]])
    assert water_fill(sizes, np.array([8, 7, 6, 0, 5])).tolist() == [
        [1, 4, 3],  # 1, then 7 over two bins: the spare one goes to the first
        [3, 0, 4],
        [2, 2, 2],
        [0, 0, 0],
        [2, 2, 1],
    ]
    assert water_fill(np.zeros((0, 3), np.int64), np.zeros(0, np.int64)).shape == (0, 3)


@given(st.lists(problems(max_clusters=8), min_size=1, max_size=5))
def test_water_fill_is_the_quadratic_programme_with_equal_shares(rows):
    width = max(len(sizes) for _, sizes, _ in rows)
    sizes = np.array([np.pad(sizes, (0, width - len(sizes))) for _, sizes, _ in rows])
    targets = np.array([target for *_, target in rows])
    expected = [solve_quotas(np.full(width, 1 / width), s, t) for s, t in zip(sizes, targets.tolist(), strict=True)]
    np.testing.assert_array_equal(water_fill(sizes, targets), expected)


class TestKeptAlready:
    """Quotas above members that are kept already."""

    @staticmethod
    def quotas(probabilities, sizes, target, kept, floor=1):
        arrays = np.array(probabilities, float), np.array(sizes, np.int64)
        return solve_quotas(*arrays, target, floor, np.array(kept, np.int64)).tolist()

    def test_by_hand(self):
        # wanted (5, 3, 2); the last keeps 6 already, so the others share 4: 2.7 - 0.5 and so on, one step down each.
        assert self.quotas([0.5, 0.3, 0.2], [10, 10, 10], 10, [0, 0, 6]) == [3, 1, 6]
        assert self.quotas([0.5, 0.3, 0.2], [10, 10, 10], 10, [1, 2, 2]) == [5, 3, 2]
        assert self.quotas([0.5, 0.5], [4, 9], 10, [4, 0]) == [4, 6]

    def test_the_floor_yields_to_what_is_kept(self):
        # 20 of 22 are taken: a floor of 5 for each of the others would make 30, one of 1 makes 22.
        assert self.quotas([0.9, 0.05, 0.05], [30, 30, 30], 22, [20, 0, 0], floor=5) == [20, 1, 1]
        assert self.quotas([0.9, 0.05, 0.05], [30, 30, 30], 21, [20, 0, 0], floor=5) == [20, 1, 0]
        assert self.quotas([0.9, 0.05, 0.05], [30, 30, 30], 20, [20, 0, 0], floor=5) == [20, 0, 0]

    def test_more_is_kept_than_is_to_be(self):
        with pytest.raises(ConfigError, match=r"must be at least the 5 kept already, got 4"):
            self.quotas([0.5, 0.5], [9, 9], 4, [5, 0])

    @given(problems(), st.data())
    def test_sum_and_bounds(self, problem, data):
        probabilities, sizes, _ = problem
        kept = np.array([data.draw(st.integers(0, int(size))) for size in sizes], np.int64)
        target = data.draw(st.integers(int(kept.sum()), int(sizes.sum())))
        floor = balance_floor(target, sizes.size, data.draw(st.floats(0, 1)))
        quotas_K = solve_quotas(probabilities, sizes, target, floor, kept)
        assert quotas_K.sum() == target
        assert (quotas_K >= kept).all()
        assert (quotas_K <= sizes).all()

    @given(problems())
    def test_nothing_kept_is_no_bound(self, problem):
        probabilities, sizes, target = problem
        expected = solve_quotas(probabilities, sizes, target)
        np.testing.assert_array_equal(solve_quotas(probabilities, sizes, target, 1, np.zeros_like(sizes)), expected)

    @given(problems(max_clusters=4, max_size=5), st.data())
    @settings(max_examples=60)
    def test_optimal_among_all_integer_quotas(self, problem, data):
        probabilities, sizes, target = problem
        kept = np.array([data.draw(st.integers(0, int(size))) for size in sizes], np.int64)
        target = max(target, int(kept.sum()))
        above = np.maximum(kept, np.minimum(sizes, 1))
        lowest = above if above.sum() <= target else kept
        choices = itertools.product(*(range(lo, hi + 1) for lo, hi in zip(lowest, sizes, strict=True)))
        cost = {c: float(((np.array(c) - probabilities * target) ** 2).sum()) for c in choices if sum(c) == target}
        found = solve_quotas(probabilities, sizes, target, kept_K=kept)
        assert cost[tuple(found.tolist())] <= min(cost.values()) + 1e-4  # units of 2^-20
