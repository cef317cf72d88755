"""Import this before torchvision, open_clip or timm: it lets them load beside a torch without torchvision's kernels.

A torchvision wheel built for another torch (the default CUDA wheel beside a CPU torch) cannot load its compiled
library, and then its import fails, because it attaches shape rules to `nms` and `qnms`, which that library would have
declared. Winnow only uses torchvision's image transforms, which need no kernels, so a bare declaration of the two is
enough. This is the one place that makes it; `# isort: split` keeps it ahead of the imports that rely on it.
"""

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> None:
    """Imports torchvision, declaring `nms` and `qnms` when its compiled library did not."""
    try:
        import torchvision
    except RuntimeError as error:  # only a try can tell: the library may be there and still not load
        if "torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", _SIGNATURE)
        import torchvision  # noqa: F401


import_torchvision()
