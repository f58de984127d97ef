"""What a correctly rounded oracle of a 16-bit operation is; `rounded_operations` has those of the model.

An oracle computes in float64 and rounds to the 16-bit format where the operation states that it does. Sums, products,
quotients and square roots of single values must be exactly those roundings. A step in fp32 that is longer (an
exponential, a mean) may be wrong by k units in the last place of fp32, so its rounding may differ only where the exact
value lies that close to a boundary between two roundings. `rounding.json` holds k for each back end and operation.
`python -m experiments.rounding` measures it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.device.environment import backend
from precision_lab.instrument.arrays import to_numpy
from precision_lab.model import language_body
from precision_lab.numerics.formats import format_named, round_to

TABLE = Path(__file__).with_name("rounding.json")
DTYPES = ("bfloat16", "float16")
_NUMPY = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
FP32 = format_named("float32")
_MOST = 64


def fp32(x):
    return round_to(x, FP32)


class Arithmetic:
    """The roundings of an oracle: `once` to the 16-bit format, `near` for a longer step in fp32.

    signs: for each such step in turn, whether it is too small (-1), exact (0) or too large (1), by `ulps`.
    """

    def __init__(self, dtype: str, ulps: float, signs: Sequence[int]):
        self.format, self.ulps = format_named(dtype), ulps
        self._signs = iter(signs)

    def once(self, x):
        return round_to(x, self.format)

    def near(self, exact, unit):
        """`exact`, wrong by `ulps` of fp32. unit: that ulp, of the largest term of the sum or product."""
        return exact + next(self._signs) * self.ulps * unit


class Draw:
    """Random and adversarial values of one 16-bit format, the same on every back end."""

    def __init__(self, dtype: str, seed: int):
        self.dtype, self.rng = dtype, np.random.default_rng([seed, DTYPES.index(dtype)])
        self.format = format_named(dtype)

    def wide(self, *shape: int, exponents: tuple[int, int] = (-24, 14)) -> mx.array:
        """Values of random sign, significand and exponent, one in eight of them zero, subnormal, 1 or a tie's half."""
        values = self.rng.choice([-1.0, 1.0], shape) * self.rng.uniform(1, 2, shape)
        values = np.ldexp(values, self.rng.integers(*exponents, shape, endpoint=True))
        subnormal = self.format.smallest_subnormal * self.rng.integers(1, 2**self.format.mantissa_bits, shape)
        half_ulp = 1 + 2.0 ** -(self.format.mantissa_bits + 1 - self.rng.integers(0, 2, shape))
        special = np.choose(self.rng.integers(0, 5, shape), [0.0, -0.0, subnormal, -subnormal, half_ulp])
        return self.array(np.where(self.rng.random(shape) < 1 / 8, special, values))

    def normal(self, *shape: int, scale: float = 1.0) -> mx.array:
        return self.array(scale * self.rng.standard_normal(shape))

    def array(self, values: np.ndarray) -> mx.array:
        stored = round_to(values, self.format).astype(_NUMPY[self.dtype])
        return mx.array(stored.view(np.uint16)).view(getattr(mx, self.dtype))


def name_of(kind: type) -> str:
    """The class of a module with its file below precision_lab/model, without the folders of 1.x and shared modules."""
    file = kind.__module__.removeprefix("precision_lab.model.")
    return f"{file.removeprefix('qwen_image.').removeprefix('text_to_image.')}.{kind.__name__}"


@dataclass(frozen=True)
class Operation:
    """inputs: draws a module and its arguments. exact: the oracle, of an Arithmetic, the module and float64 arguments.

    steps: the number of times that the oracle calls `near`; zero means that every result must be equal.
    """

    kind: type[nn.Module]
    inputs: Callable[[Draw], tuple[nn.Module, tuple]]
    exact: Callable[..., np.ndarray]
    steps: int = 0

    @property
    def name(self) -> str:
        return name_of(self.kind)

    def bounds(self, dtype: str, ulps: float, module: nn.Module, arguments: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest result that roundings of steps wrong by up to `ulps` can have."""
        wide = [as_float64(argument) for argument in arguments]
        signs = product((-1, 0, 1), repeat=self.steps)
        with np.errstate(all="ignore"):
            results = [self.exact(Arithmetic(dtype, ulps, each), module, *wide) for each in signs]
            return np.minimum.reduce(results), np.maximum.reduce(results)

    def wrong(self, dtype: str, ulps: float, seed: int) -> str:
        """The first wrong value of one draw, described; empty if there is none."""
        module, arguments = self.inputs(Draw(dtype, seed))
        result = as_float64(module(*arguments))
        least, largest = self.bounds(dtype, ulps, module, arguments)
        if result.shape != least.shape:
            return f"shape {result.shape}, expected {least.shape}"
        good = (least <= result) & (result <= largest) | np.isnan(result) & np.isnan(least)
        if good.all():
            return ""
        where = tuple(int(i) for i in np.argwhere(~good)[0])
        return (
            f"{np.count_nonzero(~good)} of {good.size} values, first at {where}: {result[where]!r}, "
            f"expected {least[where]!r} to {largest[where]!r}"
        )


def as_float64(x):
    if isinstance(x, language_body.Rotation):
        return language_body.Rotation(*(as_float64(part) for part in x))
    if not isinstance(x, mx.array):
        return x
    if x.dtype == mx.complex64:
        return np.array(x).astype(np.complex128)
    return to_numpy(x).astype(np.float64)


def committed(operation: Operation) -> int | None:
    """k of the operation on this back end; None if nobody has measured it."""
    if not operation.steps:
        return 0
    k: int | None = json.loads(TABLE.read_text()).get(backend(), {}).get(operation.name)
    return k


def least_ulps(operation: Operation, draws: int) -> int:
    """The least k with which all draws are right. Raises RuntimeError if none up to _MOST is."""
    ulps = 0
    for seed, dtype in product(range(draws), DTYPES):
        while wrong := operation.wrong(dtype, ulps, seed):
            ulps += 1
            if ulps > _MOST or not operation.steps:
                raise RuntimeError(f"{operation.name} {dtype}: {wrong}")
    return ulps
