"""comfy-kitchen's kernels in plain PyTorch: the independent implementation of ComfyUI's formats."""

import importlib
import platform
import sys

import mlx.core as mx
import numpy as np
import pytest
import torch


def eager(module):
    """A module of its eager backend. It must be there where the extra `test` installs it; elsewhere tests skip."""
    name = f"comfy_kitchen.backends.eager.{module}"
    if sys.platform == "linux" and platform.machine() == "x86_64":
        return importlib.import_module(name)
    return pytest.importorskip(name)


def in_torch(array):
    """An MLX or NumPy array as a tensor of its own."""
    if isinstance(array, mx.array) and array.dtype == mx.bfloat16:
        return in_torch(array.astype(mx.float32)).to(torch.bfloat16)
    return torch.tensor(np.array(array))


def adversarial(rng, rows=24, channels=512):
    """Weights (rows, channels), fp32, by what is difficult about them."""
    normal = rng.standard_normal((rows, channels)).astype(np.float32)
    scattered = (normal * np.exp(rng.normal(0, 4, (rows, 1)))).astype(np.float32)
    outliers = normal.copy()
    outliers[:, rng.integers(0, channels, 3)] *= 300
    some_zero = normal.copy()
    some_zero[::3] = 0
    some_zero[1, :64] = 0
    return {
        "normal": normal,
        "scattered": scattered,
        "outliers": outliers,
        "some zero": some_zero,
        "zero": np.zeros_like(normal),
        "subnormal": (normal * np.float32(1e-39)).astype(np.float32),
        "large": (normal * np.float32(1e30)).astype(np.float32),
        "one row": normal[:1],
        "halves": np.round(normal * 4).astype(np.float32) / 2,
    }
