"""What DataComp evaluates: 38 tasks, the metric that counts in each, and the means that it reports.

Gadre et al. 2023, arXiv 2304.14108, section 3.5; names, metrics and groups as in the task list and the
aggregation of its reference code. That code also runs FairFace and UTKFace, which have no main metric and count in no
mean. The worst region of FMoW is taken over all regions that have samples: the paper leaves out `Other`, the reference
code has no names of regions to know it by. WinoGAViL (a Jaccard index over sets of images) is counted as absent here.

Of the means, `Average` is DataComp's only when all of its tasks are there. A mean over fewer says which ones it lacks.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "retrieval", "association"]


@dataclass(frozen=True)
class TaskFacts:
    """One of the 38 tasks.

    Attributes:
        key: as in results files.
        dataset: its name in tables.
        metric: the one that counts.
        folder: what a folder of the webdataset layout is called.
        grouped: whether the first number of each sample's `.npy` is a group that the metric asks for.
    """

    key: str
    dataset: str
    metric: str = "acc1"

    @property
    def folder(self) -> str:
        """`wds_{task}_test`; the fairness tasks have no prefix there."""
        return f"wds_{self.key.removeprefix('fairness/').replace('/', '-')}_test"

    @property
    def kind(self) -> Kind:
        """What is asked: WinoGAViL's associations are neither classes nor captions."""
        others: dict[str, Kind] = {"mean_recall@1": "retrieval", "jaccard_score_10-12": "association"}
        return others.get(self.metric, "classification")

    @property
    def grouped(self) -> bool:
        """Whether the metric is that of the worst group."""
        return self.metric in ("acc_wg", "acc_top5_wg", "acc_worst_region")


_PER_CLASS = "mean_per_class_recall"

TASKS = (
    TaskFacts("vtab/caltech101", "Caltech-101", _PER_CLASS),
    TaskFacts("cifar10", "CIFAR-10"),
    TaskFacts("vtab/cifar100", "CIFAR-100"),
    TaskFacts("vtab/clevr_count_all", "CLEVR Counts"),
    TaskFacts("vtab/clevr_closest_object_distance", "CLEVR Distance"),
    TaskFacts("country211", "Country211"),
    TaskFacts("vtab/dtd", "Describable Textures"),
    TaskFacts("vtab/eurosat", "EuroSAT"),
    TaskFacts("fgvc_aircraft", "FGVC Aircraft", _PER_CLASS),
    TaskFacts("food101", "Food-101"),
    TaskFacts("gtsrb", "GTSRB"),
    TaskFacts("imagenet1k", "ImageNet 1k"),
    TaskFacts("imagenet_sketch", "ImageNet Sketch"),
    TaskFacts("imagenetv2", "ImageNet v2"),
    TaskFacts("imagenet-a", "ImageNet-A"),
    TaskFacts("imagenet-o", "ImageNet-O"),
    TaskFacts("imagenet-r", "ImageNet-R"),
    TaskFacts("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance"),
    TaskFacts("mnist", "MNIST"),
    TaskFacts("objectnet", "ObjectNet"),
    TaskFacts("vtab/flowers", "Oxford Flowers-102", _PER_CLASS),
    TaskFacts("vtab/pets", "Oxford-IIIT Pet", _PER_CLASS),
    TaskFacts("voc2007", "Pascal VOC 2007"),
    TaskFacts("vtab/pcam", "PatchCamelyon"),
    TaskFacts("renderedsst2", "Rendered SST2"),
    TaskFacts("vtab/resisc45", "RESISC45"),
    TaskFacts("cars", "Stanford Cars"),
    TaskFacts("stl10", "STL-10"),
    TaskFacts("sun397", "SUN397"),
    TaskFacts("vtab/svhn", "SVHN"),
    TaskFacts("retrieval/flickr30k", "Flickr", "mean_recall@1"),
    TaskFacts("retrieval/mscoco_2014_5k_test_image_text_retrieval", "MSCOCO", "mean_recall@1"),
    TaskFacts("misc/winogavil", "WinoGAViL", "jaccard_score_10-12"),
    TaskFacts("wilds/iwildcam", "iWildCam", "F1-macro_all"),
    TaskFacts("wilds/camelyon17", "Camelyon17"),
    TaskFacts("wilds/fmow", "FMoW", "acc_worst_region"),
    TaskFacts("fairness/dollar_street", "Dollar Street", "acc_top5_wg"),
    TaskFacts("fairness/geode", "GeoDE", "acc_wg"),
)

BY_KEY: Mapping[str, TaskFacts] = {task.key: task for task in TASKS}
BY_FOLDER: Mapping[str, TaskFacts] = {task.folder: task for task in TASKS}

WITHOUT_MAIN_METRIC = frozenset({"wds_fairface_test", "wds_utkface_test"})
"""Folders of tasks that DataComp runs and does not count."""

GROUPS: Mapping[str, frozenset[str]] = {
    "ImageNet": frozenset({"ImageNet 1k"}),
    "ImageNet dist. shifts": frozenset(
        {"ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R", "ObjectNet"}
    ),
    "VTAB": frozenset(
        {
            *("Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures", "EuroSAT"),
            *("KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon", "RESISC45"),
            *("SVHN", "SUN397"),
        }
    ),
    "Retrieval": frozenset({"Flickr", "MSCOCO", "WinoGAViL"}),
    "Average": frozenset(task.dataset for task in TASKS),
}


@dataclass(frozen=True)
class Aggregate:
    """A mean of main metrics.

    Attributes:
        name: of the group.
        value: the mean over those that are there.
        present: their names, sorted.
        absent: the names of the others. The mean is DataComp's where there is none.
    """

    name: str
    value: float
    present: tuple[str, ...]
    absent: tuple[str, ...]


def aggregate(results: Mapping[str, float]) -> list[Aggregate]:
    """DataComp's means over the tasks that are there; a group of which there is none has none.

    Args:
        results: dataset name -> main metric. Names that are not DataComp's take no part.
    """
    means = []
    for name, datasets in GROUPS.items():
        present = _sorted(datasets & results.keys())
        if present:
            value = sum(results[dataset] for dataset in present) / len(present)
            means.append(Aggregate(name, value, present, _sorted(datasets - results.keys())))
    return means


def _sorted(names: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=str.lower))
