"""The techniques in a yaml file of somebody else: classes of this package only, since a file should not run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from precision_lab.cli.building import build
from precision_lab.cli.composing import check_aliases, described_failure
from precision_lab.errors import InputError, shown
from precision_lab.record.files import read_text
from precision_lab.techniques.base import Technique

_LARGEST = 1 << 22
_OURS = "precision_lab.techniques."
_TARGET = "_target_"


def read_techniques(file: Path, sites: Any) -> dict[str, Technique]:
    """The techniques of a file in the form of conf/technique; `sites` are the groups that it may name.

    Raises InputError for a file that is too large or no such yaml, for other files in its defaults, and for classes
    that are not among the techniques of this package.
    """
    text = read_text(file)
    if len(text) > _LARGEST:
        raise InputError(f"{file} has more than {_LARGEST} characters, expected a technique")
    check_aliases(file, text.encode())
    try:
        content = OmegaConf.create(text)
        if not isinstance(content, DictConfig) or not content:
            raise InputError(f"{file}: expected a mapping from the name of a technique to its settings")
        names = [str(name) for name in content]
        merged = OmegaConf.create({"sites": sites, **content})
        values: Any = OmegaConf.to_container(merged, resolve=True)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file}: {described_failure(error)}") from error
    if "defaults" in names:
        raise InputError(f"{file}: it has defaults, which are other files; give technique= with --config-dir")
    for name in names:
        _check(values[name], f"{file}: {name}")
    return {name: build(OmegaConf.create(values[name]), Technique, name) for name in names}


def _check(value: Any, what: str) -> None:
    """Raises InputError unless `value` describes a technique of this package, and nothing in it another object."""
    if not isinstance(value, Mapping) or _TARGET not in value:
        raise InputError(f"{what}: expected a mapping with a {_TARGET}, got {shown(value)}")
    for target in _targets(value):
        if not isinstance(target, str) or not target.startswith(_OURS):
            raise InputError(
                f"{what}: {_TARGET} is {shown(target)}, expected a class below {_OURS[:-1]}; "
                "your own class is read by technique= with --config-dir"
            )


def _targets(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        own = [value[_TARGET]] if _TARGET in value else []
        return own + [target for entry in value.values() for target in _targets(entry)]
    if isinstance(value, list):
        return [target for entry in value for target in _targets(entry)]
    return []
