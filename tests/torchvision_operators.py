"""Imports torchvision beside a torch without CUDA.

transformers reads the processor of Qwen3-VL only with torchvision. The build of torchvision on PyPI is linked to a
torch with CUDA. Beside a CPU build its operators are missing, and its import fails where it describes two of them. They
are declared here, and nothing calls them.
"""

import torch

try:
    import torchvision
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
