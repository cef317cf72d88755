import pytest
from pydantic import ValidationError

from pipeline.clustering import EXACT_CLUSTERS, KMeansSettings


@pytest.mark.parametrize(
    ("rows", "clusters"), [(0, 1), (1, 1), (2, 1), (3, 2), (10_000, 100), (440_000_000, 20_976), (10**10, 50_000)]
)
def test_auto_is_the_root_of_the_rows(rows: int, clusters: int) -> None:
    assert KMeansSettings(clusters="auto").decided(rows).k == clusters


def test_a_number_stays_and_search_is_decided() -> None:
    decided = KMeansSettings(clusters=7, iterations=3).decided(10_000)
    assert (decided.k, decided.iterations, decided.search) == (7, 3, "exact")
    assert decided.decided(5) == decided
    assert KMeansSettings(clusters=EXACT_CLUSTERS).decided(1).search == "exact"
    assert KMeansSettings(clusters=EXACT_CLUSTERS + 1).decided(1).search == "two_level"
    assert KMeansSettings(clusters=EXACT_CLUSTERS + 1, search="exact").decided(1).search == "exact"
    assert KMeansSettings(clusters=2, search="two_level").decided(1).two_level


@pytest.mark.parametrize(
    "bad",
    [
        {"clusters": "many"},
        {"clusters": 0},
        {"clusters": 2, "init": "kmeans"},
        {"clusters": 2, "metric": "cosine"},
        {"clusters": 2, "points_per_cluster": 0},
        {"clusters": 2, "search": "faiss"},
        {"clusters": 10_001, "init": "kmeans++"},
        {"clusters": 20_001, "init": "kmeans||"},
    ],
)
def test_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KMeansSettings.model_validate(bad)


def test_concepts_and_levels_need_directions() -> None:
    with pytest.raises(ValidationError, match="metric must be spherical where clusters are merged"):
        KMeansSettings.model_validate({"clusters": 9, "metric": "euclidean", "merge": {"to": 3}})
    with pytest.raises(ValidationError, match="metric must be spherical"):
        KMeansSettings.model_validate({"clusters": 9, "metric": "euclidean", "levels": [3]})
