"""Declared columns: the name, dtype, unit and meaning of each column of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a table. dtype: as pandas names it; float64 holds NaN where a row has no value. unit: "" for none."""

    name: str
    dtype: str = "float64"
    unit: str = ""
    meaning: str = ""

    @property
    def term(self) -> str:
        """The name with its unit, as a glossary lists it."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


def count(name: str, meaning: str) -> Column:
    """A column of exact counts; rows without one are null."""
    return Column(name, "Int64", "", meaning)


def dtypes(columns: Iterable[Column]) -> Mapping[str, str]:
    """The dtype of each column by name."""
    return {column.name: column.dtype for column in columns}


def lost(fmt: str) -> Sequence[Column]:
    """The shares of values that a format loses, in the same words wherever they are measured."""
    return [
        Column(f"overflow_pct_{fmt}", unit="%", meaning=f"values beyond the largest number of {fmt}"),
        Column(f"underflow_pct_{fmt}", unit="%", meaning=f"non-zero values that {fmt} rounds to zero"),
    ]


POSITION: Sequence[Column] = (
    Column("branch", "string", "", "branch of a step; null outside of branches"),
    Column("step", "Int64", "", "number of the step, from 0; null outside of the loop"),
    Column("sigma", "float64", "", "level that belongs to the step, such as a noise level; null where there is none"),
    Column("component", "string", "", "component that the module is in"),
    Column("site", "string", "", "path of the module in its component"),
    Column("port", "string", "", "array of a call: out, out.N, in or in.N"),
    Column("stream", "string", "", "residual stream that the array belongs to; - where there is none"),
    Column("block", "Int64", "", "index of the block that the module is, or is part of; null outside of blocks"),
)
CASE: Sequence[Column] = (
    Column("prompt_id", "Int64", "", "index of the prompt in the manifest"),
    Column("seed", "Int64", "", "seed of the noise"),
)
VARIANT = Column("variant", "string", "", "name of the variant")
ARRAY: Sequence[Column] = (
    Column("dtype", "string", "", "dtype of the array"),
    Column("shape", "string", "", "shape of the array, 1x64x256"),
    Column("numel", "Int64", "", "number of elements"),
)
ORDER = Column("order", "Int64", "", "number of the observation within its generation, in order of execution")
