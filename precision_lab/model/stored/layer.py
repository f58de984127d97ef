"""One linear of a file before it is checked, and what it becomes: the arrays of a coding or of a packing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import mlx.core as mx
import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError, inline, shown
from precision_lab.model.stored.base import StoredLinear
from precision_lab.record.safetensors import Entry

FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""The types that scales have in files."""
Floats = npt.NDArray[np.float32]


class Made(NamedTuple):
    """An array of a linear: the last part of the name of its tensor in the file, and what makes it from that one."""

    tensor: str
    convert: Callable[[mx.array], mx.array]


class Stored(NamedTuple):
    """A linear in a format of its file.

    form: the name of the format. arrays: those of `linear`, by name. inputs: the last parts of the names of the scales
    that `linear.inputs` has. blocks: the types of arrays of scales that are checked when they are read, by their names;
    there are many. bias: what makes the bias from that of the file and the arrays, if it is another.
    """

    form: str
    linear: StoredLinear
    arrays: Mapping[str, Made]
    inputs: tuple[str, ...] = ()
    blocks: Mapping[str, str] = MappingProxyType({})
    bias: Callable[[Mapping[str, mx.array], mx.array], mx.array] | None = None


def no_scale(_: mx.array) -> mx.array:
    """The scale of a weight that has none in its file."""
    return mx.ones((1, 1))


def same(array: mx.array) -> mx.array:
    return array


def column(scales: mx.array) -> mx.array:
    return scales.astype(mx.float32).reshape(-1, 1)


@dataclass(frozen=True)
class Layer:
    """A linear of a file before it is checked.

    path: that of the module. entries: its tensors by the last part of their names, as `weight` or `weight_scale`.
    about: what the file says of it.
    """

    file: Path
    path: str
    entries: Mapping[str, Entry]
    about: Mapping[str, Any]

    def entry(self, name: str, *dtypes: str) -> Entry:
        """A tensor of one of these types. Raises InputError if it is missing or of another type."""
        if name not in self.entries:
            raise InputError(f"{self.file}: tensor {inline(self.path)}.{name} is missing")
        if self.entries[name].dtype not in dtypes:
            raise self.wrong(name, f"expected {' or '.join(dtypes)}")
        return self.entries[name]

    def matrix(self, *dtypes: str) -> tuple[int, int]:
        """The shape of the stored weight. Raises InputError if it is no matrix of one of these types."""
        shape = self.entry("weight", *dtypes).shape
        if len(shape) != 2 or 0 in shape:
            raise self.wrong("weight", "expected outputs and channels")
        return shape[0], shape[1]

    def one_of(self, *names: str) -> str:
        """The name that is there, of tensors with several names. Raises InputError if none is, or more than one."""
        found = [name for name in names if name in self.entries]
        if len(found) > 1:
            raise self.wrong(found[1], f"but there is {found[0]} too, expected one of them")
        if not found:
            raise InputError(f"{self.file}: tensor {inline(self.path)}.{names[0]} is missing")
        return found[0]

    def shaped(self, name: str, *shape: int | None) -> tuple[int, ...]:
        """The shape of a tensor of floats. Raises InputError if it is not `shape`, in which None is any number."""
        found = self.entry(name, *FLOATS).shape
        if len(found) != len(shape) or any(
            n != m if m is not None else n == 0 for n, m in zip(found, shape, strict=True)
        ):
            raise self.wrong(name, f"expected {' x '.join('n' if n is None else str(n) for n in shape)}")
        return found

    def scales(self, name: str, *counts: int) -> int:
        """How many numbers the scales of this name have.

        Raises InputError unless that is one of `counts` and all are finite: one scale spoils a whole tensor or row.
        """
        values = self.numbers(name, *counts)
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            raise self.wrong(name, f"with {values[wrong[0]]:g} at {wrong[0]}, expected finite numbers")
        return len(values)

    def number(self, name: str) -> float:
        """The positive number that a tensor holds. Raises InputError if it holds anything else."""
        value = float(self.numbers(name, 1)[0])
        if not 0 < value < math.inf:
            raise InputError(f"{self.file}: tensor {inline(self.path)}.{name} is {value:g}, expected a positive number")
        return value

    def numbers(self, name: str, *counts: int) -> Floats:
        """The values of a tensor, which must be one of these counts of floats. Raises InputError otherwise."""
        entry = self.entry(name, *FLOATS)
        if math.prod(entry.shape) not in counts:
            raise self.wrong(name, f"expected {' or '.join(map(str, sorted(set(counts))))} numbers")
        return np.frombuffer(entry.content(), FLOATS[entry.dtype]).astype(np.float32)

    def wrong(self, name: str, why: str) -> InputError:
        """The error for a tensor of this linear."""
        entry = self.entries[name]
        return InputError(
            f"{self.file}: tensor {inline(self.path)}.{name} is {shown(entry.dtype)} of shape {entry.shape}, {why}"
        )
