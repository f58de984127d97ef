"""A configuration without interpolations, whose text says the same when it is read again.

OmegaConf takes `${` in any string for an interpolation, in a prompt too; `\\${` is the text itself. A resolved value
that holds `${` is therefore escaped again, or the next reader would try to resolve it.
"""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf


def literal(config: DictConfig) -> DictConfig:
    """`config` resolved, and equal to itself resolved once more; open to new keys.

    Raises an OmegaConf error for an interpolation that leads nowhere.
    """
    return OmegaConf.create(_escaped(OmegaConf.to_container(config, resolve=True)))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_escaped(entry) for entry in value]
    if isinstance(value, str):  # backslashes before ${ are escapes, elsewhere they are text
        return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", value)
    return value
