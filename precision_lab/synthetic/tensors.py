"""Tensors that are drawn when they are written, each from its own random generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

CHUNK_ELEMENTS = 1 << 26
"""Largest number of elements drawn at once, 256 MiB in fp32."""


@dataclass(frozen=True)
class Tensor:
    """A named tensor of a checkpoint. `draw` yields its values in fp32, in pieces along the first axis."""

    name: str
    shape: tuple[int, ...]
    draw: Callable[[], Iterator[Array]]

    @property
    def nbytes(self) -> int:
        """Size in bytes when stored as bf16."""
        return 2 * math.prod(self.shape)


def whole(name: str, shape: tuple[int, ...], values: Callable[[], Array]) -> Tensor:
    """A tensor drawn in one piece."""
    return Tensor(name, shape, lambda: iter((values(),)))


@dataclass(frozen=True)
class Source:
    """Random numbers that depend on the seed and the name of the tensor, not on the order of drawing."""

    seed: int

    def generator(self, name: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, crc32(name.encode())])))

    def normal(self, name: str, shape: tuple[int, ...], std: float = 1.0, mean: float = 0.0) -> Array:
        """Values of N(mean, std^2) in fp32."""
        values = self.generator(name).standard_normal(shape, dtype=np.float32)
        values *= np.float32(std)
        if mean:
            values += np.float32(mean)
        return values

    def signs(self, name: str, count: int) -> Array:
        """Independent values +1 and -1, (count,) in fp32."""
        return np.where(self.generator(name).random(count) < 0.5, np.float32(-1), np.float32(1))

    def channels(self, name: str, width: int, count: int) -> npt.NDArray[np.int64]:
        """`count` different channels out of `width`, in random order."""
        return self.generator(name).permutation(width)[:count].astype(np.int64)

    def tensor(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> Tensor:
        """A tensor of N(mean, std^2), drawn in pieces of at most CHUNK_ELEMENTS (or one row)."""

        def draw() -> Iterator[Array]:
            generator = self.generator(name)
            rows = max(1, CHUNK_ELEMENTS // math.prod(shape[1:]))
            for start in range(0, shape[0], rows):
                piece = generator.standard_normal((min(rows, shape[0] - start), *shape[1:]), dtype=np.float32)
                piece *= np.float32(std)
                piece += np.float32(mean)
                yield piece

        return Tensor(name, shape, draw)

    def linear(self, name: str, out: int, inner: int, std: float, bias: float) -> Iterator[Tensor]:
        """`name`.weight of (out, inner) and `name`.bias of (out,), with the given standard deviations."""
        yield self.tensor(f"{name}.weight", (out, inner), std)
        yield self.tensor(f"{name}.bias", (out,), bias)
