"""Resolves a configuration so that its text has the same meaning when it is read again.

OmegaConf treats `${` in any string, even in a prompt, as an interpolation; `\\${` is the literal text. A resolved value
that contains `${` is therefore escaped again, because the next reader would otherwise try to resolve it.
"""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from precision_lab.errors import InputError
from precision_lab.record.folders import user_path

_PROMPTS = (("prompts",), ("learning", "prompts"), ("gate", "learn", "prompts"))
_LARGEST = 1 << 20
"""The largest file of prompts, in bytes."""


def literal(config: DictConfig) -> DictConfig:
    """`config` resolved, so that resolving it again changes nothing; it accepts new keys.

    Raises an OmegaConf error for an interpolation without a target, and InputError for one that leads to itself.
    """
    return OmegaConf.create(literally(_resolved(config)))


def settled(config: DictConfig) -> DictConfig:
    """`config` as `literal` returns it, with the prompts of a file in place of `prompts=@FILE`."""
    values = _resolved(config)
    for *holders, key in _PROMPTS:
        holder: Any = values
        for name in holders:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and isinstance(holder.get(key), str) and holder[key].startswith("@"):
            holder[key] = _prompts(holder[key][1:], ".".join((*holders, key)))
    return OmegaConf.create(literally(values))


def _resolved(config: DictConfig) -> dict[Any, Any]:
    """The plain values, key by key, so that a message can say which key leads to itself."""
    values: dict[Any, Any] = {}
    for key in config:
        try:
            value = config[key]
            values[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except RecursionError:
            raise InputError(f"{key!r}: an interpolation in it leads to itself") from None
    return values


def _prompts(name: str, key: str) -> list[str]:
    """The lines of a file, without those that are empty."""
    try:
        with user_path(name).open("rb") as file:
            content = file.read(_LARGEST + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{key}=@{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{key}=@{name} cannot be read: no UTF-8 text, or no path") from error
    if len(content) > _LARGEST:
        raise InputError(f"{key}=@{name} is larger than {_LARGEST} bytes, expected one prompt a line")
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines):
        raise InputError(f"{key}=@{name} holds no prompt, expected one a line")
    return [line for line in lines if line]


def literally(value: Any) -> Any:
    """Plain values with their text escaped, so that a configuration that holds them has that very text."""
    if isinstance(value, dict):
        return {key: literally(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [literally(entry) for entry in value]
    if isinstance(value, str):  # backslashes are escapes before ${ and text elsewhere
        return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", value)
    return value
