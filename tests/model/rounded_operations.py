"""Correctly rounded oracles of the model's element-wise operations and norms in 16 bits (see `rounding`)."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.model import language_body, layers, modulation, rotary, vae_blocks
from precision_lab.model.qwen_image import block, rope, sampler
from precision_lab.model.qwen_image_21 import block as block_21
from precision_lab.model.qwen_image_21 import sampler as sampler_21
from precision_lab.model.qwen_image_21 import transformer as transformer_21
from precision_lab.model.qwen_image_21 import vae_stages
from precision_lab.model.qwen_image_21.config import Stage
from precision_lab.model.text_to_image import sampler as shared
from precision_lab.numerics import float64
from precision_lab.numerics.formats import ulp
from tests.model.rounding import FP32, Draw, Operation, as_float64, fp32


def _silu(a, module, x):
    sigmoid = np.where(x == 0, 0.5, float64.silu(x) / np.where(x == 0, 1, x))
    least = FP32.smallest_normal  # a smaller sigmoid may be zero: its exponential overflows, or a GPU flushes it
    return a.once(a.near(float64.silu(x), np.abs(x) * np.where(sigmoid < least, least, ulp(sigmoid, FP32))))


def _gelu(a, module, x):
    return a.once(a.near(float64.gelu_tanh(x), ulp(x, FP32)))  # 1 + tanh cancels for negative x


def _tanh(a, module, x):
    return a.once(a.near(np.tanh(x), ulp(np.tanh(x), FP32)))


def _layer_norm(a, module, x):
    exact = float64.layer_norm(x, module.eps)
    scale = 1 / np.sqrt(np.var(x, axis=-1, keepdims=True) + module.eps)
    return a.once(a.near(exact, ulp(np.abs(x).max(axis=-1, keepdims=True) * scale, FP32)))


def _rms_norm(a, module, x):
    unit = float64.rms_norm(x, np.ones(x.shape[-1]), module.eps)
    return a.once(a.once(a.near(unit, ulp(unit, FP32))) * as_float64(module.weight))


def _zero_centred_rms_norm(a, module, x):
    exact = float64.rms_norm(x, fp32(as_float64(module.weight) + 1), module.eps)
    return a.once(a.near(exact, ulp(exact, FP32)))


def _channel_norm(a, module, x):
    unit = x / np.maximum(np.sqrt(np.sum(x * x, axis=-1, keepdims=True)), float(np.float32(1e-12)))
    unit = a.once(a.near(unit, ulp(unit, FP32)))
    return a.once(a.once(fp32(unit * fp32(x.shape[-1] ** 0.5))) * as_float64(module.gamma))


def _average_down(a, module, x):
    size = float64.average_down(np.abs(x), *module.stage[1:])
    return a.once(a.near(float64.average_down(x, *module.stage[1:]), ulp(size, FP32)))


def _duplicate_up(a, module, x):
    """Value by value, from the position of each in the result."""
    in_dim, out_dim, space, time = module.stage
    frames = np.repeat(x, out_dim * time * space**2 // in_dim, axis=-1)
    result = np.empty((len(x), x.shape[1] * space, x.shape[2] * space, out_dim))
    for i in range(space):
        for j in range(space):
            first = ((time - 1) * space + i) * space + j
            result[:, i::space, j::space] = frames[..., first :: time * space**2]
    return result


def _patchify(a, module, x):
    squares = [x[:, i :: module.size, j :: module.size] for j in range(module.size) for i in range(module.size)]
    return np.stack(squares, axis=-1).reshape(*squares[0].shape[:3], -1)


def _unpatchify(a, module, x):
    size, (batch, rows, columns, channels) = module.size, x.shape
    result = np.empty((batch, rows * size, columns * size, channels // size**2))
    for i in range(size):
        for j in range(size):
            result[:, i::size, j::size] = x[..., j * size + i :: size**2]
    return result


def _complex_rotary(a, module, x, rotation):
    pairs = x[..., ::2] + 1j * x[..., 1::2]
    turn = rotation[:, None, :]
    turned = pairs * turn
    real = np.abs(pairs.real * turn.real) + np.abs(pairs.imag * turn.imag)
    imaginary = np.abs(pairs.real * turn.imag) + np.abs(pairs.imag * turn.real)
    exact = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)
    return a.once(a.near(exact, ulp(np.stack([real, imaginary], axis=-1).reshape(x.shape), FP32)))


def _half_rotary(a, module, x, rotation):
    cos, sin = (a.once(np.tile(part, (1, 2)))[:, None, :] for part in rotation)
    first, second = np.split(x, 2, axis=-1)
    return a.once(a.once(x * cos) + a.once(np.concatenate([-second, first], axis=-1) * sin))


def _timestep(a, module, sigma, dtype):
    return a.once(fp32(a.once(fp32(1000 * sigma)) / 1000)).reshape(1)


def _guidance(a, module, cond, uncond, scale):
    combined = a.once(uncond + a.once(fp32(fp32(scale) * a.once(cond - uncond))))
    norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (cond, combined)]
    rounded = [a.once(a.near(norm, ulp(norm, FP32))) for norm in norms]
    return a.once(combined * a.once(rounded[0] / rounded[1]))


def _denormalize(a, module, x):
    mean, std = (a.once(as_float64(part)) for part in (module._mean, module._std))
    return a.once(a.once(x / a.once(1 / std)) + mean)


def _guidance_21(a, module, cond, uncond, scale):
    return a.once(uncond + a.once(fp32(fp32(scale) * a.once(cond - uncond))))


def _denormalize_21(a, module, x):
    mean, std = (a.once(as_float64(part)) for part in (module._mean, module._std))
    return a.once(a.once(x * std) + mean)


def _rotations(draw: Draw) -> tuple[nn.Module, tuple]:
    turns = rope.rotations((4, 6, 6), rotary.Grid(3, 5), 4).img
    return rotary.Rotary(), (draw.wide(2, 15, 3, 16), turns)


def _normed(module: nn.Module, weight: str, draw: Draw) -> tuple[nn.Module, tuple]:
    """A norm with a random scale; each row has its own magnitude, from far below to far above the square of eps."""
    module[weight] = draw.wide(*module[weight].shape, exponents=(-3, 3))
    return module, (_rows(draw, module[weight].size),)


def _rows(draw: Draw, width: int) -> mx.array:
    """Rows (40, width) of different magnitudes, one of them zero, one constant, one with a single large value."""
    rows = draw.rng.standard_normal((40, width)) * np.ldexp(1.0, draw.rng.integers(-16, 8, (40, 1)))
    rows[0], rows[1], rows[2, 3] = 0, 3, 2.0**14
    return draw.array(rows)


def _latents(draw: Draw) -> tuple[mx.array, mx.array]:
    return draw.normal(1, 30, 64), draw.normal(1, 30, 64)


def _statistics(draw: Draw) -> SimpleNamespace:
    mean, std = draw.rng.standard_normal(16), draw.rng.uniform(0.5, 3, 16)
    return SimpleNamespace(latents_mean=mean.tolist(), latents_std=std.tolist())


def _dt(draw: Draw) -> mx.array:
    return mx.array(-draw.rng.uniform(0.01, 0.4), dtype=mx.float32)


OPERATIONS = (
    Operation(layers.SiLU, lambda d: (layers.SiLU(), (d.wide(4000),)), _silu, steps=1),
    Operation(layers.GELUTanh, lambda d: (layers.GELUTanh(), (d.wide(4000, exponents=(-24, 3)),)), _gelu, steps=1),
    Operation(layers.Tanh, lambda d: (layers.Tanh(), (d.wide(4000, exponents=(-24, 3)),)), _tanh, steps=1),
    Operation(layers.LayerNorm, lambda d: (layers.LayerNorm(), (_rows(d, 64),)), _layer_norm, steps=1),
    Operation(layers.RMSNorm, lambda d: _normed(layers.RMSNorm(48), "weight", d), _rms_norm, steps=1),
    Operation(layers.Add, lambda d: (layers.Add(), (d.wide(4000), d.wide(4000))), lambda a, _, x, y: a.once(x + y)),
    Operation(
        block.Modulate,
        lambda d: (block.Modulate(), (d.wide(2, 20, 64), d.wide(2, 64), d.wide(2, 64, exponents=(-10, 1)))),
        lambda a, _, x, shift, scale: a.once(a.once(x * a.once(1 + scale)[:, None]) + shift[:, None]),
    ),
    Operation(
        block_21.Modulate,
        lambda d: (block_21.Modulate(), (d.wide(2, 20, 64), d.wide(2, 1, 64, exponents=(-10, 1)))),
        lambda a, _, x, scale: a.once(x * a.once(1 + scale)),
    ),
    Operation(
        transformer_21.ZeroCentredRMSNorm,
        lambda d: _normed(transformer_21.ZeroCentredRMSNorm(48, 1e-6), "weight", d),
        _zero_centred_rms_norm,
        steps=1,
    ),
    Operation(
        modulation.GatedAdd,
        lambda d: (modulation.GatedAdd(), (d.wide(2, 20, 64), d.wide(2, 64, exponents=(-8, 1)), d.wide(2, 20, 64))),
        lambda a, _, residual, gate, update: a.once(residual + a.once(gate[:, None] * update)),
    ),
    Operation(rotary.Rotary, _rotations, _complex_rotary, steps=1),
    Operation(
        language_body.Rotary,
        lambda d: (language_body.Rotary(), (d.wide(2, 11, 3, 16), language_body.rotation(11, 16, 1e6))),
        _half_rotary,
    ),
    Operation(
        layers.Multiply,
        lambda d: (layers.Multiply(), (d.wide(4000), d.wide(4000, exponents=(-8, 1)))),
        lambda a, _, x, y: a.once(x * y),
    ),
    Operation(
        shared.Timestep,
        lambda d: (shared.Timestep(), (mx.array(d.rng.uniform(0.02, 1), dtype=mx.float32), getattr(mx, d.dtype))),
        _timestep,
    ),
    Operation(
        sampler.Guidance,
        lambda d: (sampler.Guidance(), (*_latents(d), float(d.rng.uniform(1, 8)))),
        _guidance,
        steps=2,
    ),
    Operation(
        shared.EulerStep,
        lambda d: (shared.EulerStep(), (*_latents(d), _dt(d))),
        lambda a, _, latents, velocity, dt: a.once(latents + a.once(a.once(dt) * velocity)),
    ),
    Operation(
        sampler.Denormalize, lambda d: (sampler.Denormalize(_statistics(d)), (d.normal(2, 5, 6, 16),)), _denormalize
    ),
    Operation(
        sampler_21.Guidance,
        lambda d: (sampler_21.Guidance(), (*_latents(d), float(d.rng.uniform(1, 8)))),
        _guidance_21,
    ),
    Operation(
        sampler_21.Denormalize,
        lambda d: (sampler_21.Denormalize(_statistics(d)), (d.normal(2, 5, 6, 16),)),
        _denormalize_21,
    ),
    Operation(
        shared.ToPixels,
        lambda d: (shared.ToPixels(), (d.wide(1, 20, 30, 3, exponents=(-12, 1)),)),
        lambda a, _, x: 255 * np.clip(a.once(a.once(x * 0.5) + 0.5), 0, 1),
    ),
    Operation(
        vae_blocks.ChannelNorm, lambda d: _normed(vae_blocks.ChannelNorm(24), "gamma", d), _channel_norm, steps=1
    ),
    Operation(
        vae_blocks.PadBottomRight,
        lambda d: (vae_blocks.PadBottomRight(), (d.wide(1, 6, 5, 8),)),
        lambda a, _, x: np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]),
    ),
    Operation(
        vae_blocks.RepeatPixels,
        lambda d: (vae_blocks.RepeatPixels(), (d.wide(1, 6, 5, 8),)),
        lambda a, _, x: x.repeat(2, axis=1).repeat(2, axis=2),
    ),
    Operation(
        vae_stages.AverageDown,
        lambda d: (vae_stages.AverageDown(Stage(12, 12, 2, 2)), (d.wide(2, 8, 12, 12, exponents=(-6, 6)),)),
        _average_down,
        steps=1,
    ),
    Operation(
        vae_stages.DuplicateUp,
        lambda d: (vae_stages.DuplicateUp(Stage(12, 6, 2, 2)), (d.wide(2, 3, 4, 12),)),
        _duplicate_up,
    ),
    Operation(vae_stages.Patchify, lambda d: (vae_stages.Patchify(3), (d.wide(2, 6, 9, 4),)), _patchify),
    Operation(vae_stages.Unpatchify, lambda d: (vae_stages.Unpatchify(3), (d.wide(2, 2, 3, 36),)), _unpatchify),
)
