"""An array seen at a site, and where and when: what observers and probes are given."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn


class Position(NamedTuple):
    """Where and when an array was seen; `order` counts what was seen in one generation."""

    branch: str | None
    step: int | None
    sigma: float | None
    component: str
    site: str
    port: str
    stream: str
    block: int | None
    order: int

    @property
    def key(self) -> str:
        """Names the array within a generation."""
        return f"{self.branch}|{self.step}|{self.component}:{self.site}|{self.port}"


class Observation(NamedTuple):
    """An evaluated array and where it was seen; with an output, the inputs of its call, if an observer wants calls.

    module: what was called, for observers that need its parameters.
    """

    position: Position
    array: mx.array
    inputs: tuple[mx.array, ...] = ()
    module: nn.Module | None = None
