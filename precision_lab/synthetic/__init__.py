"""Complete Qwen-Image checkpoints with generated weights; in those of 1.x, activations grow as published."""

from precision_lab.synthetic.cache import SCHEME, on_demand
from precision_lab.synthetic.checkpoint import Progress, make
from precision_lab.synthetic.presets import PRESETS
from precision_lab.synthetic.shape import Shape

__all__ = ["PRESETS", "SCHEME", "Progress", "Shape", "make", "on_demand"]
