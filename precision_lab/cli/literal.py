"""Resolves a configuration so that its text has the same meaning when it is read again.

OmegaConf treats `${` in any string, even in a prompt, as an interpolation; `\\${` is the literal text. A resolved value
that contains `${` is therefore escaped again, because the next reader would otherwise try to resolve it.
"""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf


def literal(config: DictConfig) -> DictConfig:
    """`config` resolved, so that resolving it again changes nothing; it accepts new keys.

    Raises an OmegaConf error for an interpolation without a target.
    """
    return OmegaConf.create(_escaped(OmegaConf.to_container(config, resolve=True)))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_escaped(entry) for entry in value]
    if isinstance(value, str):  # backslashes are escapes before ${ and text elsewhere
        return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", value)
    return value
