"""Complete Qwen-Image checkpoints with made weights, whose activations grow as those of the 20 B model do."""

from precision_lab.synthetic.cache import SCHEME, on_demand
from precision_lab.synthetic.checkpoint import Progress, make
from precision_lab.synthetic.shape import PRESETS, Shape, VisionConfig

__all__ = ["PRESETS", "SCHEME", "Progress", "Shape", "VisionConfig", "make", "on_demand"]
