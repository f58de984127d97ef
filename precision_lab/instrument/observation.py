"""An array observed at a site and its position in the generation, as passed to observers and probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

Columns = Mapping[str, Sequence[Any] | npt.NDArray[Any]]
"""A table by columns of equal length. It is written several times faster than as rows."""


class Position(NamedTuple):
    """Where and when an array was observed; `order` numbers the observations of one generation."""

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
        """Identifies the array within a generation."""
        return f"{self.branch}|{self.step}|{self.component}:{self.site}|{self.port}"


def position_columns(positions: Sequence[Position]) -> dict[str, list[Any]]:
    """A table of `positions` with a column for each field of Position."""
    columns = zip(*positions, strict=True) if positions else ((),) * len(Position._fields)
    return {name: list(column) for name, column in zip(Position._fields, columns, strict=True)}


def rows_of(columns: Columns) -> list[dict[str, Any]]:
    """A table by columns converted to rows of Python objects."""
    lists = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


class Observation(NamedTuple):
    """An array and its position.

    inputs: the inputs of the call, for an output at a site where an observer uses the port `call`; otherwise empty.
    module: the called module, for observers that need its parameters.
    """

    position: Position
    array: mx.array
    inputs: tuple[mx.array, ...] = ()
    module: nn.Module | None = None
