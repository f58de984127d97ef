"""An array seen at a site, with its position: the input of observers and probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

Columns = Mapping[str, Sequence[Any] | npt.NDArray[Any]]
"""A table by columns, all of one length: written several times faster than as many rows with the same keys."""


class Position(NamedTuple):
    """Where and when an array was seen; `order` counts the arrays seen in one generation."""

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


def position_columns(positions: Sequence[Position]) -> dict[str, list[Any]]:
    """A column for each field."""
    columns = zip(*positions, strict=True) if positions else ((),) * len(Position._fields)
    return {name: list(column) for name, column in zip(Position._fields, columns, strict=True)}


def rows_of(columns: Columns) -> list[dict[str, Any]]:
    """The same table as rows of Python objects."""
    lists = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


class Observation(NamedTuple):
    """An evaluated array and where it was seen; with an output, the inputs of its call, if an observer wants calls.

    module: the called module, for observers that need its parameters.
    """

    position: Position
    array: mx.array
    inputs: tuple[mx.array, ...] = ()
    module: nn.Module | None = None
