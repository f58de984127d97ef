"""MLX's random numbers: the key, the range and the distribution in each format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour import random_numbers
from precision_lab.device.behaviour.bridge import DTYPES, UnavailableError, from_mlx
from precision_lab.device.behaviour.finding import Finding
from precision_lab.device.behaviour.random_numbers import Draw
from precision_lab.device.behaviour.storage import Array, Storage
from precision_lab.device.behaviour.subjects.asking import ask


def findings(storage: Storage, rng: np.random.Generator) -> Iterator[Finding]:
    """Measures uniform and normal numbers in one storage dtype. `rng` is not used: MLX draws."""
    uniform, normal = drawing(mx.random.uniform, storage), drawing(mx.random.normal, storage)
    for op, draw in (("random.uniform", uniform), ("random.normal", normal)):
        yield ask(op, storage, "key", random_numbers.keyed, draw)
    yield ask("random.uniform", storage, "prefix", random_numbers.prefix, uniform)
    yield ask("random.uniform", storage, "range", random_numbers.unit_interval, uniform)
    yield ask("random.normal", storage, "distribution", random_numbers.standard_normal, normal)
    if storage.name == "float32":
        yield ask("random.normal", storage, "bits_of_key_0", random_numbers.normal_bits, normal)


def drawing(function: Callable[..., mx.array], storage: Storage) -> Draw:
    """Wraps a function of mx.random, with the format as its dtype."""

    def draw(seed: int, shape: tuple[int, ...]) -> Array:
        try:
            return from_mlx(function(shape=shape, dtype=DTYPES[storage.name], key=mx.random.key(seed)))
        except (RuntimeError, ValueError) as error:
            raise UnavailableError(str(error).splitlines()[0]) from error

    return draw


def normal_and_uniform(seed: int, size: int) -> tuple[Array, Array]:
    """The normal numbers of a key, and the uniform ones in (-1, 1) of the same key, in float32."""
    low = float(np.nextafter(np.float32(-1), np.float32(0)))
    settings: dict[str, Any] = {"shape": (size,), "key": mx.random.key(seed)}
    return from_mlx(mx.random.normal(**settings)), from_mlx(mx.random.uniform(low=low, high=1.0, **settings))
