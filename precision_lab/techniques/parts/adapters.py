"""The adapters of a technique, each with a strength, and the changes that they make at a site."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import mlx.nn as nn

from precision_lab.errors import InputError, shown
from precision_lab.instrument.sites import Site, Wrapper, select
from precision_lab.model.adapters.adapter import Adapter, read_adapter
from precision_lab.model.adapters.deltas import Delta
from precision_lab.model.coded import LINEARS, linear_shape
from precision_lab.techniques.base import Beside

log = logging.getLogger(__name__)


class Adapters:
    """The adapters at `path`, one or several, with one strength for all or one for each; `technique` is for messages.

    Raises InputError for a path or a strength that is missing or malformed, and what `read_adapter` raises.
    """

    def __init__(self, technique: str, path: str | Sequence[str] | None, strength: float | Sequence[float]):
        self._technique, self._settings = technique, (technique, path, strength)
        paths, strengths = checked(technique, path, strength)
        self._adapters: list[tuple[Adapter, float]] = [
            (read_adapter(each), factor) for each, factor in zip(paths, strengths, strict=True)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker reads the files itself."""
        return type(self), self._settings

    def check_model(self, sites: Sequence[Site], patterns: Sequence[str]) -> None:
        """Raises InputError unless each adapter fits the model, and `patterns` name one of its linears."""
        linears = {site.path: linear_shape(linear_of(site.module)) for site in sites if _is_open(site)}
        chosen = {site.path for site in select(patterns, sites)}
        for adapter, _ in self._adapters:
            adapter.check(linears)
            named = [path for path in linears if adapter.names(path)]
            if not chosen.intersection(named):
                raise InputError(
                    f"{self._technique}.sites is {list(patterns)}, which names no linear of {adapter.file}"
                )
            log.info("%s: %s (%s): %d linears", self._technique, adapter.file, adapter.writer, len(named))

    def at(self, site: Site) -> list[Delta]:
        """The changes of the linear at `site` times their strengths, in order; empty for any other module.

        Raises InputError for a linear inside a wrapper of another technique.
        """
        if not _is_open(site):
            return []
        shape = linear_shape(linear_of(site.module))
        found = [
            delta.times(factor)
            for adapter, factor in self._adapters
            if (delta := adapter.delta(site.path, shape)) is not None
        ]
        if found and not isinstance(site.module, LINEARS) and not isinstance(site.module, Beside):
            raise InputError(
                f"{self._technique}: {site} is {type(site.module).__name__}, expected a linear: "
                f"list {self._technique} before techniques that wrap linears"
            )
        return found


def linear_of(module: nn.Module) -> nn.Module:
    """The module inside all wrappers."""
    while isinstance(module, Wrapper):
        module = module.inner
    return module


def _is_open(site: Site) -> bool:
    """Whether a site is a linear of the component that adapters change."""
    return site.component == site.layout.default and isinstance(linear_of(site.module), LINEARS)


def checked(
    technique: str, path: str | Sequence[str] | None, strength: float | Sequence[float]
) -> tuple[list[str], list[float]]:
    """Paths and as many strengths. Raises InputError for values that are missing, malformed or of another number."""
    paths = [path] if isinstance(path, str) else list(path or ())
    if not paths or not all(isinstance(each, str) and each for each in paths):
        raise InputError(
            f"{technique}.path is {shown(path)}, expected a safetensors file, a folder, or a list of them: "
            f"++technique.{technique}.path=FILE"
        )
    strengths = list(strength) if isinstance(strength, Sequence) else [strength] * len(paths)
    if len(strengths) != len(paths):
        raise InputError(
            f"{technique}.strength has {len(strengths)} numbers for {len(paths)} adapters, expected one or as many"
        )
    for each in strengths:
        if isinstance(each, bool) or not isinstance(each, int | float) or not math.isfinite(each):
            raise InputError(f"{technique}.strength is {shown(strength)}, expected a finite number for each adapter")
    return paths, [float(each) for each in strengths]
