"""Techniques as conf/technique names them."""

from functools import cache
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(file.stem for file in (CONF / "technique").glob("*.yaml"))


@cache
def _one(name):
    """Hydra's composition of one file, without the third of a second it takes."""
    node = OmegaConf.load(CONF / "technique" / f"{name}.yaml")
    found = {}
    for part in node.pop("defaults", []):
        found |= _one(part)
    return found | {key: instantiate(value, _convert_="all") for key, value in node.items()}


def named(*names):
    """The techniques of `technique=[names]`, in order."""
    return {key: technique for name in names for key, technique in _one(name).items()}
