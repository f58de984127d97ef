"""Complete Qwen-Image checkpoints with generated weights, whose activations grow like those of the 20 B model."""

from precision_lab.synthetic.cache import SCHEME, on_demand
from precision_lab.synthetic.checkpoint import Progress, make
from precision_lab.synthetic.shape import PRESETS, Shape, VisionConfig

__all__ = ["PRESETS", "SCHEME", "Progress", "Shape", "VisionConfig", "make", "on_demand"]
