"""The shipped configurations in tests, with Hydra 1.3 and with 1.4, which deprecates `version_base`."""

from pathlib import Path

import hydra

CONF = Path(__file__).parents[1] / "conf"


def configurations():
    """A context in which `hydra.compose` reads the shipped configurations."""
    settings = {"version_base": None} if hydra.__version__.startswith("1.3.") else {}
    return hydra.initialize_config_dir(str(CONF), **settings)
