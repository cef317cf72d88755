"""The table of DataComp's tasks and its means."""

import pytest

from operators.evaluation.datacomp import BY_FOLDER, BY_KEY, GROUPS, TASKS, aggregate


def test_there_are_38_and_the_groups_know_them():
    assert len(TASKS) == len(BY_KEY) == len(BY_FOLDER) == len({task.dataset for task in TASKS}) == 38
    assert {name: len(group) for name, group in GROUPS.items()} == {
        "ImageNet": 1,
        "ImageNet dist. shifts": 6,
        "VTAB": 13,
        "Retrieval": 3,
        "Average": 38,
    }
    assert all(group <= GROUPS["Average"] for group in GROUPS.values())
    assert {task.dataset for task in TASKS if task.metric == "mean_per_class_recall"} == {
        "Caltech-101",
        "FGVC Aircraft",
        "Oxford Flowers-102",
        "Oxford-IIIT Pet",
    }
    assert {task.dataset for task in TASKS if task.grouped} == {"FMoW", "Dollar Street", "GeoDE"}


def test_folders():
    assert BY_FOLDER["wds_vtab-caltech101_test"].key == "vtab/caltech101"
    assert BY_FOLDER["wds_wilds-fmow_test"].metric == "acc_worst_region"
    assert BY_FOLDER["wds_geode_test"].key == "fairness/geode"


def test_a_mean_over_some_names_the_others():
    means = {mean.name: mean for mean in aggregate({"ImageNet-A": 0.2, "ObjectNet": 0.4, "MNIST": 0.9, "mine": 0.0})}
    assert set(means) == {"ImageNet dist. shifts", "Average"}
    shifts = means["ImageNet dist. shifts"]
    assert (shifts.value, shifts.present) == (pytest.approx(0.3), ("ImageNet-A", "ObjectNet"))
    assert shifts.absent == ("ImageNet Sketch", "ImageNet v2", "ImageNet-O", "ImageNet-R")
    assert means["Average"].value == pytest.approx(0.5)
    assert len(means["Average"].absent) == 35
    assert aggregate({"mine": 1.0}) == []


def test_all_38_give_datacomps_average():
    means = aggregate({task.dataset: 0.5 for task in TASKS})
    assert [mean.name for mean in means] == list(GROUPS)
    assert all(mean.absent == () and mean.value == 0.5 for mean in means)
