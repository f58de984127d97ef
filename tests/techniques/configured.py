"""The techniques of conf/technique, by name."""

from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from precision_lab.cli.config import build
from precision_lab.techniques.base import Technique

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(file.stem for file in (CONF / "technique").glob("*.yaml"))
OF_21 = ("fp32_swiglu",)
"""Names of techniques for modules that Qwen-Image 1.x does not have."""
NAMES_1 = [name for name in NAMES if name not in OF_21]
_GROUPS = OmegaConf.create({"sites": OmegaConf.load(CONF / "sites" / "qwen_image.yaml")})
SITES = OmegaConf.to_container(_GROUPS, resolve=True)["sites"]
"""The groups of conf/sites/qwen_image.yaml, each a pattern or a list of patterns."""


@cache
def described(name):
    """Composes one file with its defaults as Hydra does, but without the third of a second that Hydra takes."""
    node = OmegaConf.load(CONF / "technique" / f"{name}.yaml")
    found = {}
    for part in node.pop("defaults", []):
        found |= described(part)
    resolved = OmegaConf.to_container(OmegaConf.merge(_GROUPS, node), resolve=True)
    return found | {key: value for key, value in resolved.items() if key != "sites"}


@cache
def _built(name):
    return {key: build(OmegaConf.create(value), Technique, key) for key, value in described(name).items()}


def named(*names):
    """The techniques of `technique=[names]`, in order."""
    return {key: technique for name in names for key, technique in _built(name).items()}
