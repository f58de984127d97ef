"""`models inspect=`: prints what a file or a folder of weights holds, and how it is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console

from precision_lab.cli.building import located
from precision_lab.cli.listing import content_of
from precision_lab.cli.paths import option_files
from precision_lab.cli.terminal import print_table
from precision_lab.errors import InputError

if TYPE_CHECKING:
    from precision_lab.model.inspection import Reader

_PLAIN = re.compile(r"\[?[\w/.:@~+-]+\]?")


def show(given: str, console: Console) -> None:
    """Prints what the file or folder `given` holds. Raises InputError as `model.inspection.inspect` does."""
    from precision_lab.model.inspection import inspect

    found = inspect(given, _readers())
    for part in found.parts:
        print_table(console, (part.name, ""), part.rows, folding=("",))
    for remark in found.remarks:
        console.print(remark, soft_wrap=True)
    if found.overrides is None:
        console.print("No option of model runs it.")
    else:
        line = " ".join(_override(key, value) for key, value in found.overrides.items())
        console.print(f"Run it: python -m precision_lab {line}", soft_wrap=True)


def _override(key: str, value: str) -> str:
    """An override as a shell takes it."""
    if _PLAIN.fullmatch(value):
        return shlex.quote(f"{key}={value}")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{key}="{escaped}"')


def _readers() -> Iterator[Reader]:
    """The options of `model` that read text to image and have a path, without those of generated weights."""
    from precision_lab.model.inspection import Reader
    from precision_lab.synthetic import PRESETS

    for name, file in option_files("model").items():
        content = content_of(file)
        target, path = OmegaConf.select(content, "model._target_"), OmegaConf.select(content, "model.path")
        try:
            source: Any = located(target, f"model={name}")
        except InputError:
            continue  # somebody's broken option
        if hasattr(source, "kind") and path is not None and not path.startswith("synthetic:"):
            shape: Any = PRESETS[source.preset]
            yield Reader(name, source, path, OmegaConf.select(content, "model.base"), shape.transformer)
