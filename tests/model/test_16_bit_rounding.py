"""Element-wise operations and norms round in 16 bits exactly where they state it, and nothing computes unseen."""

import ast
import importlib
import inspect
import math
import pkgutil
import textwrap

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import precision_lab.model
from precision_lab.device.environment import backend
from tests.model.rounded_operations import OPERATIONS
from tests.model.rounding import DTYPES, Draw, committed, name_of

DRAWS = 3
SUMS = {
    "layers.Linear": "test_transformer.test_a_16_bit_linear_is_rounded_once",
    "coded.CodedLinear": "test_coded.test_a_16_bit_result_is_rounded_once",
    "quantized.QuantizedLinear": "test_quantized_layers",
    "quantized.QuantizedEmbedding": "test_quantized_layers",
    "attention.Attend": "test_transformer.test_16_bit_attention_is_rounded_once_on_the_cpu",
    "language_body.Attend": "test_transformer.test_16_bit_attention_is_rounded_once_on_the_cpu",
    "vae_blocks.Attend": "test_transformer.test_16_bit_attention_is_rounded_once_on_the_cpu",
    "vae_blocks.Conv2d": "test_vae.test_a_16_bit_convolution_is_rounded_once_on_the_cpu",
}
"""Modules that sum products, whose order differs between back ends, and the tests of their rounding."""
TABLES = {
    "rope.RotaryEmbedding": "test_rope",
    "language_body.RotaryEmbedding": "test_text_encoder",
    "transformer.TimestepProjection": "test_transformer",
    "qwen_image_21.rope.RotaryEmbedding": "test_rope_21",
    "qwen_image_21.transformer.TimestepProjection": "test_transformer_21",
}
"""Modules whose result is fp32 or complex64 in every dtype of the model, and the tests of their values."""
WITHOUT_ARITHMETIC = {
    "split",
    "concatenate",
    "zeros",
    "ones",
    "where",
    "clip",
    "arange",
    "zeros_like",
    "eval",
    "async_eval",
}
"""Functions of MLX that round nothing."""
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)


def kinds_of_module() -> dict[str, type[nn.Module]]:
    """Every subclass of `mlx.nn.Module` that a file below precision_lab/model defines."""
    found = {}
    for info in pkgutil.walk_packages(precision_lab.model.__path__, "precision_lab.model."):
        module = importlib.import_module(info.name)
        for kind in vars(module).values():
            if inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__ == info.name:
                found[name_of(kind)] = kind
    return found


KINDS = kinds_of_module()
COMPOSED = sorted(KINDS.keys() - {operation.name for operation in OPERATIONS} - SUMS.keys() - TABLES.keys())


def arithmetic_in(kind: type) -> list[str]:
    """Expressions outside constructors and readers of weights that may round: operators, and functions of MLX."""
    found = []
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    for method in tree.body:
        if not isinstance(method, ast.FunctionDef) or method.name in ("__init__", "sanitize"):
            continue
        for node in ast.walk(method):
            if isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATORS):
                found.append(ast.unparse(node))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value).partition(".")[0]
                if owner in ("mx", "nn", "math", "np") and node.func.attr not in WITHOUT_ARITHMETIC:
                    found.append(ast.unparse(node))
    return found


def test_every_module_has_an_oracle_or_a_reason():
    named = [*(operation.name for operation in OPERATIONS), *SUMS, *TABLES]
    assert len(named) == len(set(named))
    assert not set(named) - KINDS.keys(), "no longer in the model"
    assert len(COMPOSED) > 15


@pytest.mark.parametrize("name", COMPOSED)
def test_a_module_without_an_oracle_computes_nothing_by_itself(name):
    """It may only call other modules: arithmetic belongs in a module with an oracle in `rounded_operations`."""
    assert arithmetic_in(KINDS[name]) == []


def test_arithmetic_is_recognised():
    class Hidden(nn.Module):
        def __call__(self, x, y):
            x, _ = mx.split(x, 2)
            return mx.exp(x) + y

    assert arithmetic_in(Hidden) == ["mx.exp(x) + y", "mx.exp(x)"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_rounds_where_it_states(operation, dtype):
    ulps = committed(operation)
    if ulps is None:
        pytest.skip(f"no k of {operation.name} for {backend()}: python -m experiments.rounding measures it")
    for seed in range(DRAWS):
        assert operation.wrong(dtype, ulps, seed) == ""


def gelu_tanh(y):
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * (y * y * y))
    return 0.5 * y * (1 + mx.tanh(inner))


def layer_norm(x, eps):
    centred = x - mx.mean(x, axis=-1, keepdims=True)
    return centred * mx.rsqrt(mx.mean(centred * centred, axis=-1, keepdims=True) + eps)


def rms_norm(x, eps):
    return x * mx.rsqrt(mx.mean(x * x, axis=-1, keepdims=True) + eps)


def wide(*arrays):
    return [array.astype(mx.float32) for array in arrays]


def complex_in_16_bits(self, x, rotation):
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = (part(rotation)[:, None, :].astype(x.dtype) for part in (mx.real, mx.imag))
    return mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def halves_in_fp32(self, x, rotation):
    cos, sin = (mx.tile(part, (1, 2))[:, None, :] for part in rotation)
    first, second = mx.split(x, 2, axis=-1)
    return (x * cos + mx.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)


def modulate_in_fp32(self, x, shift, scale):
    y, add, factor = wide(x, shift, scale)
    return (y * (1 + factor[:, None]) + add[:, None]).astype(x.dtype)


def gated_add_in_fp32(self, residual, gate, update):
    y, factor, z = wide(residual, gate, update)
    return (y + factor[:, None] * z).astype(residual.dtype)


def denormalize_in_fp32(self, x):
    return (x.astype(mx.float32) * self._std + self._mean).astype(x.dtype)


def euler_in_fp32(self, latents, velocity, dt):
    return (latents.astype(mx.float32) + dt * velocity.astype(mx.float32)).astype(velocity.dtype)


def guidance_in_fp32(self, cond, uncond, scale):
    a, b = wide(cond, uncond)
    combined = b + scale * (a - b)
    norms = [mx.linalg.norm(x, axis=-1, keepdims=True) for x in (a, combined)]
    return (combined * (norms[0] / norms[1])).astype(cond.dtype)


def channel_norm_in_fp32(self, x):
    y = x.astype(mx.float32)
    unit = y / mx.maximum(mx.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
    return (unit * x.shape[-1] ** 0.5 * self.gamma.astype(mx.float32)).astype(x.dtype)


def average_down_in_16_bits(self, x):
    """The sum of two frames, the first of zeros, of 2 x 2 pixels."""
    first, second = (x[:, i::2, ::2] + x[:, i::2, 1::2] for i in (0, 1))
    return (first + second) * mx.array(0.125, x.dtype)


def average_down_of_the_first_frame(self, x):
    kept = mx.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=-1)
    return mx.mean(kept.astype(mx.float32), axis=-1).astype(x.dtype)


PLANTS = {
    "SiLU in 16 bits": ("layers.SiLU", lambda self, x: nn.silu(x)),
    "SiLU with its sigmoid rounded": ("layers.SiLU", lambda self, x: x * mx.sigmoid(x)),
    "GELU in 16 bits": ("layers.GELUTanh", lambda self, x: gelu_tanh(x)),
    "GELU with a rounded constant": (
        "layers.GELUTanh",
        lambda self, x: (
            0.5 * (y := x.astype(mx.float32)) * (1 + mx.tanh(0.796875 * (y + 0.044677734 * y * y * y)))
        ).astype(x.dtype),
    ),
    "LayerNorm in 16 bits": ("layers.LayerNorm", lambda self, x: layer_norm(x, self.eps)),
    "LayerNorm with another eps": ("layers.LayerNorm", lambda self, x: mx.fast.layer_norm(x, None, None, 1e-5)),
    "RMSNorm in 16 bits": ("layers.RMSNorm", lambda self, x: rms_norm(x, self.eps) * self.weight),
    "tanh in 16 bits": ("layers.Tanh", lambda self, x: 1 - 2 / (mx.exp(2 * x) + 1)),
    "ZeroCentredRMSNorm rounded twice": (
        "qwen_image_21.transformer.ZeroCentredRMSNorm",
        lambda self, x: mx.fast.rms_norm(x, (1 + self.weight.astype(mx.float32)).astype(x.dtype), self.eps),
    ),
    "Modulate of 2.1 in fp32": (
        "qwen_image_21.block.Modulate",
        lambda self, x, scale: (x.astype(mx.float32) * (1 + scale.astype(mx.float32))).astype(x.dtype),
    ),
    "RMSNorm with another eps": ("layers.RMSNorm", lambda self, x: mx.fast.rms_norm(x, self.weight, 1e-5)),
    "RMSNorm rounded once": (
        "layers.RMSNorm",
        lambda self, x: mx.fast.rms_norm(*wide(x, self.weight), self.eps).astype(x.dtype),
    ),
    "Add of a rounded sum": ("layers.Add", lambda self, x, y: (x + y) * mx.array(1.0078125, x.dtype)),
    "Modulate in fp32": ("block.Modulate", modulate_in_fp32),
    "GatedAdd in fp32": ("modulation.GatedAdd", gated_add_in_fp32),
    "rotation in 16 bits": ("rotary.Rotary", complex_in_16_bits),
    "rotation in fp32": ("language_body.Rotary", halves_in_fp32),
    "Euler step in fp32": ("sampler.EulerStep", euler_in_fp32),
    "guidance in fp32": ("sampler.Guidance", guidance_in_fp32),
    "denormalized in fp32": ("sampler.Denormalize", denormalize_in_fp32),
    "timestep rounded once": (
        "sampler.Timestep",
        lambda self, sigma, dtype: sigma.astype(mx.float32).astype(dtype).reshape(1),
    ),
    "pixels in fp32": (
        "sampler.ToPixels",
        lambda self, x: 255 * mx.clip(x.astype(mx.float32) * 0.5 + 0.5, 0, 1),
    ),
    "average in 16 bits": ("qwen_image_21.vae_stages.AverageDown", average_down_in_16_bits),
    "average of the wrong frame": ("qwen_image_21.vae_stages.AverageDown", average_down_of_the_first_frame),
    "ChannelNorm rounded once": ("vae_blocks.ChannelNorm", channel_norm_in_fp32),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_moved_roundings_are_seen(plant, monkeypatch):
    name, call = PLANTS[plant]
    (operation,) = (operation for operation in OPERATIONS if operation.name == name)
    monkeypatch.setattr(operation.kind, "__call__", call)
    for dtype in DTYPES:
        assert any(operation.wrong(dtype, committed(operation) or 64, seed) for seed in range(20)), dtype


def test_the_oracle_does_not_depend_on_the_module_it_judges(monkeypatch):
    """A module of constants is wrong nearly everywhere."""
    for operation in OPERATIONS:
        monkeypatch.setattr(operation.kind, "__call__", lambda self, x, *_: mx.zeros_like(x) + 0.3)
        assert operation.wrong("bfloat16", 64, 0), operation.name


def test_draws_reach_the_corners():
    for dtype in DTYPES:
        draw = Draw(dtype, 0)
        values = np.array(draw.wide(4000).astype(mx.float32))
        zeros = values == 0
        assert 0 < np.signbit(values[zeros]).sum() < zeros.sum()
        magnitudes = np.abs(values[~zeros])
        assert magnitudes.min() < draw.format.smallest_normal
        assert magnitudes.max() > 1e4
