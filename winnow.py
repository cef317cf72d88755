"""Winnow as a library: the names that a script or a notebook needs.

    from winnow import load_kept

    kept = load_kept("curated/keys.parquet")
    dataset = webdataset.WebDataset(urls).select(lambda sample: kept(sample["__url__"], sample["__key__"]))

Running a job from Python:

    from winnow import Curation, load_config, run_curation

    summary = run_curation(load_config("curate.yaml", Curation))

Filtering by a network trained on trusted pairs:

    from winnow import DataFilteringNetwork

    network = DataFilteringNetwork("runs/dfn", {"model": {"name": "ViT-B-32"}, "samples_seen": 10_000_000})
    network.train({"format": "webdataset", "path": "trusted/*.tar"})
    kept = network.filter({"format": "webdataset", "path": "pool/*.tar"}, keep_fraction=0.15)

Loading what was trained, with open_clip alone:

    import winnow

    winnow.import_torchvision()  # before open_clip; needed only where torch and torchvision are of different builds
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:runs/dfn/model")

Clustering an array bottom up:

    from winnow import HierarchicalAgglomerativeClustering

    labels = HierarchicalAgglomerativeClustering("cosine", "average", n_clusters=10).fit_predict(X)

Importing this module is cheap: a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from operators.errors import (
        ConfigError,
        InputError,
        LimitExceeded,
        ModelError,
        UserError,
        WinnowError,
        WorkspaceError,
    )
    from operators.hac import HierarchicalAgglomerativeClustering
    from operators.torchvision_ops import import_torchvision
    from pipeline.comparison.compare import run_comparison
    from pipeline.comparison.settings import Comparison
    from pipeline.config.loader import load_config
    from pipeline.curate import run_curation
    from pipeline.curation import Curation
    from pipeline.data_filtering_network import DataFilteringNetwork
    from pipeline.evaluation.evaluate import run_evaluation
    from pipeline.evaluation.settings import Evaluation
    from pipeline.kept import KeptKeys, load_kept
    from pipeline.ledger import find_rows, read_ledger
    from pipeline.storage import Store
    from pipeline.summary import Summary
    from pipeline.training.settings import Data, Recipe, Training
    from pipeline.training.trainer import run_training

__all__ = [
    "Comparison",
    "ConfigError",
    "Curation",
    "Data",
    "DataFilteringNetwork",
    "Evaluation",
    "HierarchicalAgglomerativeClustering",
    "InputError",
    "KeptKeys",
    "LimitExceeded",
    "ModelError",
    "Recipe",
    "Store",
    "Summary",
    "Training",
    "UserError",
    "WinnowError",
    "WorkspaceError",
    "find_rows",
    "import_torchvision",
    "load_config",
    "load_kept",
    "read_ledger",
    "run_comparison",
    "run_curation",
    "run_evaluation",
    "run_training",
]

_HOMES = {
    "Comparison": "pipeline.comparison.settings",
    "Curation": "pipeline.curation",
    "Data": "pipeline.training.settings",
    "DataFilteringNetwork": "pipeline.data_filtering_network",
    "Evaluation": "pipeline.evaluation.settings",
    "HierarchicalAgglomerativeClustering": "operators.hac",
    "KeptKeys": "pipeline.kept",
    "Recipe": "pipeline.training.settings",
    "Store": "pipeline.storage",
    "Summary": "pipeline.summary",
    "Training": "pipeline.training.settings",
    "find_rows": "pipeline.ledger",
    "import_torchvision": "operators.torchvision_ops",
    "load_config": "pipeline.config.loader",
    "load_kept": "pipeline.kept",
    "read_ledger": "pipeline.ledger",
    "run_comparison": "pipeline.comparison.compare",
    "run_curation": "pipeline.curate",
    "run_evaluation": "pipeline.evaluation.evaluate",
    "run_training": "pipeline.training.trainer",
}
"""Where a name lives; every other name is an error's."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "operators.errors")), name)


def __dir__() -> list[str]:
    return __all__
