"""Weights that are hard to encode, the same on every machine: no function is used whose last bit can differ."""

import numpy as np


def weights(channels=512, rows=2):
    """Tensors (rows, channels), fp32, by name."""
    rng = np.random.default_rng(20)
    shape = rows, channels

    def normal():
        return rng.standard_normal(shape).astype(np.float32)

    tensors = {
        "normal": normal(),
        "as a linear's": normal() * np.float32(0.02),
        "bfloat16": (normal().view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
        "heavy tails": normal() / normal(),
        "wide range": np.ldexp(normal(), rng.integers(-12, 13, shape)).astype(np.float32),
        "outliers": np.where(rng.random(shape) < 0.01, np.float32(1000), np.float32(1)) * normal(),
        "zeros": np.zeros(shape, np.float32),
        "groups of zeros": np.where(np.arange(channels) // 16 % 3 == 0, np.float32(0), normal()),
        "subnormal": np.ldexp(normal(), -132).astype(np.float32),
        "below the least group": np.ldexp(normal(), -50).astype(np.float32),
        "scales below float16": np.ldexp(normal(), -40).astype(np.float32),
        "scales subnormal in float16": np.ldexp(normal(), -20).astype(np.float32),
        "scales above float16": np.ldexp(normal(), 22).astype(np.float32),
        "squares above fp32": np.ldexp(normal(), 100).astype(np.float32),
        "constant": np.repeat(normal()[:, :: channels // 16], channels // 16, axis=1),
        "integers": rng.integers(-8, 8, shape).astype(np.float32),
        "signs": rng.choice(np.array([-1, 1], np.float32), shape),
        "positive": np.abs(normal()),
        "negative": -np.abs(normal()),
    }
    tensors["one row"] = normal()[:1, :256]
    return tensors
