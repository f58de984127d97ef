"""Faults of MLX that were reported in public in 2026, each with inputs that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour import accuracy, products, random_numbers
from precision_lab.device.behaviour.accuracy import NARROWER, RIGHT, WITHIN, Mask
from precision_lab.device.behaviour.bridge import Op, on_mlx
from precision_lab.device.behaviour.check import PublicFault
from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.quantised import Mode, Weights, one_term_rows
from precision_lab.device.behaviour.storage import BFLOAT16, FLOAT32, Array
from precision_lab.device.behaviour.subjects.packed import product, stored
from precision_lab.device.behaviour.subjects.randoms import normal_and_uniform

MLX = "https://github.com/ml-explore/mlx/issues/"
_SEED = 20_261
_INTEGERS = "every row, in integers that every format and every order of summation represent exactly"


def faults() -> Iterator[PublicFault]:
    """All checks, products first. Each is independent of the others."""
    rng = np.random.default_rng(_SEED)
    yield from _products(rng)
    yield from _attention(rng)
    yield from _quantised(rng)
    yield from _nvfp4(rng)
    yield PublicFault(
        "random_normal",
        "random.normal differs between chips",
        [MLX + "3568"],
        "M1 Max against M3 Ultra and M5, MLX 0.31.1: other bits for the same key",
        "sqrt(2) erfinv(u) in float64, within 8 units in the last place. Other bits within that are no fault",
        normal_and_uniform,
        random_numbers.normal_from_uniform,
        ("right",),
    )


def _products(rng: np.random.Generator) -> Iterator[PublicFault]:
    matmul = on_mlx(lambda a, b: a @ b, FLOAT32)
    yield PublicFault(
        "fp32_width",
        "fp32 products keep 11 bits of their factors",
        [MLX + "3534", MLX + "4411", MLX + "3860"],
        "M5 and CUDA, unless MLX_ENABLE_TF32=0. MLX documents it: it is a default, not a mistake",
        "24 bits of each factor, by products whose exact result float32 holds",
        matmul,
        lambda op: products.input_bits(op, FLOAT32, np.random.default_rng(_SEED)),
        ("float32",),
    )
    v = FLOAT32.round(rng.standard_normal((1, 1, 1, 512)))
    ones = np.ones((1, 16, 1, 1))
    yield PublicFault(
        "broadcast_operand",
        "fp32 products lose bits when an operand is broadcast",
        [MLX + "3953"],
        "Metal with TF32 on: products with 1.0 land on the grid of float16",
        "the operand itself, times 1.0",
        matmul,
        lambda op: accuracy.wrong_rows(op, (ones, v), np.broadcast_to(v, (1, 16, 1, 512))),
        (RIGHT,),
    )
    a, b = accuracy.signs(rng, (1024, 256)), accuracy.signs(rng, (256, 64))
    yield PublicFault(
        "rows_beyond_8",
        "products of more than 8 rows are wrong",
        [MLX + "3586", MLX + "3585"],
        "MLX built with Xcode 26.5, kernels for the neural accelerators; wheels of PyPI are not affected",
        _INTEGERS,
        on_mlx(lambda a, b: a @ b, BFLOAT16),
        lambda op: accuracy.wrong_rows(op, (a, b), a @ b),
        (RIGHT,),
    )


def _attention(rng: np.random.Generator) -> Iterator[PublicFault]:
    q, k, v = (FLOAT32.round(rng.standard_normal((2, 8, 82, 64))) for _ in range(3))
    yield PublicFault(
        "attention_82",
        "attention over 82 tokens is wrong",
        [MLX + "3585"],
        "M4, MLX 0.31.2: heads of 64, off by 0.5",
        "softmax in float64, within the error of arithmetic of 11 bits",
        on_mlx(lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125), FLOAT32),
        _attended((q, k, v), None),
        (WITHIN, NARROWER),
    )
    for channels in (64, 128):
        kept = np.arange(80) < 53
        q, k, v = (FLOAT32.round(rng.standard_normal((1, 4, 80, channels))) for _ in range(3))
        yield PublicFault(
            f"padded_attention_{channels}",
            f"padded attention differs from the same without padding, heads of {channels}",
            [MLX + "3897"],
            "M5 and not M3: fp32 is off by 2^-12 for heads of 64 and 128, and exact for 96",
            "softmax over the allowed keys in float64, within the error of float32 arithmetic",
            on_mlx(_padded(kept, channels), FLOAT32),
            _attended((q, k, v), kept),
            (WITHIN,),
        )


def _padded(kept: Mask, channels: int) -> Callable[..., mx.array]:
    scale = channels**-0.5
    return lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mx.array(kept)[None, None])


def _attended(inputs: tuple[Array, ...], allowed: Mask | None) -> Callable[[Op], Outcome]:
    q, k, v = inputs
    scale = q.shape[-1] ** -0.5
    exact, magnitude = accuracy.exact_attention(q, k, v, scale, allowed)
    noise = accuracy.attention_noise(q, k, scale)
    return lambda op: accuracy.rounding_error(op, inputs, exact, magnitude, FLOAT32, noise)


def _in_integers(x: Array, weights: Weights) -> Callable[[Op], Outcome]:
    return lambda op: accuracy.wrong_rows(op, (x,), x @ weights.values.T)


def _quantised(rng: np.random.Generator) -> Iterator[PublicFault]:
    eight, four = Mode("affine", 64, 8), Mode("affine", 64, 4)
    for mode, rows, title, links, reported in (
        (
            eight,
            40_000,
            "products with quantised weights are wrong beyond 32,768 rows",
            ["https://github.com/mflux-community/mflux/pull/489"],
            "Metal, MLX before 0.32: the first rows - 32,768 rows are garbage",
        ),
        (
            eight,
            4096,
            "8-bit weights draw a grid",
            [MLX + "3656"],
            "M5 Max, MLX 0.31.1, closed without a cause; the maintainers suspected TF32",
        ),
        (
            four,
            4096,
            "4-bit weights draw a mosaic",
            ["https://github.com/dgrauet/ltx-2-mlx/issues/40"],
            "some M2, M3 and M4, MLX 0.31.1",
        ),
    ):
        weights = Weights.draw(mode, 32, 64, rng)
        x = one_term_rows(rows, 64)
        yield PublicFault(
            f"quantised_{mode.bits}bit_{rows}_rows",
            title,
            links,
            reported,
            _INTEGERS,
            product(weights, BFLOAT16),
            _in_integers(x, weights),
            (RIGHT,),
        )
    yield _gathered("gathered_rows", four, 40_002, 64, rng, "beyond 32,768 rows that are no multiple of 64", "3856")
    narrow = Mode("affine", 32, 4)
    yield _gathered("gathered_depth", narrow, 2050, 96, rng, "at inner sizes that are no multiple of 64", "3887")
    weights = Weights.draw(Mode("mxfp4", 32, 4), 4, 1024, rng)
    one = one_term_rows(1, 1024)
    yield PublicFault(
        "few_outputs_mxfp4",
        "mxfp4 products with fewer than 8 outputs use undecoded scales",
        [MLX + "3762"],
        "Metal, one row",
        _INTEGERS,
        product(weights, BFLOAT16),
        _in_integers(one, weights),
        (RIGHT,),
    )


def _nvfp4(rng: np.random.Generator) -> Iterator[PublicFault]:
    mode = Mode("nvfp4", 16, 4)
    # one operand of qqmm is quantised on the way: groups with a 6, the largest value of float4, survive that
    values = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    x = rng.choice(values, (1, 64)) * rng.choice([-1.0, 1.0], (1, 64))
    x[:, ::16] = 6.0
    weights = Weights.draw(mode, 32, 64, rng)
    yield PublicFault(
        "nvfp4_tensor_scale",
        "products in nvfp4 ignore the scale of the tensor",
        [MLX + "3550", "https://github.com/ml-explore/mlx/pull/3551"],
        "Metal, one row; refused there since May 2026. On a CPU, MLX 0.32.4 ignores it too: we measured that",
        "twice the product without the scale, in multiples of a quarter that float32 represents exactly",
        tensor_scaled,
        lambda op: accuracy.wrong_rows(lambda x: op(x, weights, 2.0), (x,), 2.0 * x @ weights.values.T),
        (RIGHT,),
    )
    groups = rng.choice(values, (64, 8, 16))
    groups[..., 0] = 6.0
    rows = (groups * np.where(np.arange(8) % 2, 8.0, 0.25)[:, None]).reshape(64, 128)
    yield PublicFault(
        "nvfp4_groups",
        "quantising to nvfp4 takes one scale for two groups",
        [MLX + "3557", "https://github.com/ml-explore/mlx/pull/3934"],
        "Metal, until July 2026: from the second group of 32 lanes on, a scale is that of 32 values instead of 16",
        "the values themselves: each group of 16 consists of values that float4 represents at the group's scale",
        on_mlx(lambda x: mx.dequantize(*_nvfp4_codes(x), mode="nvfp4", dtype=mx.float32), FLOAT32),
        lambda op: accuracy.wrong_rows(op, (rows,), rows),
        (RIGHT,),
    )


def _nvfp4_codes(x: mx.array) -> tuple[mx.array, mx.array]:
    codes, scales, *_ = mx.quantize(x, mode="nvfp4")
    return codes, scales


_NVFP4_ONE = 448.0 * 6.0
"""The tensor's scale that leaves values as they are: the largest float8 e4m3 times the largest float4."""


def tensor_scaled(x: Array, weights: Weights, scale: float) -> Array:
    """scale * x @ w.T by mx.qqmm, where `scale` is that of the tensor of weights in nvfp4. x: (rows, inner)."""

    def multiply(x: mx.array) -> mx.array:
        packed, scales, _ = stored(weights, FLOAT32)
        one, of_weights = mx.array([_NVFP4_ONE]), mx.array([_NVFP4_ONE * scale])
        return mx.qqmm(x, packed, scales, mode="nvfp4", global_scale_x=one, global_scale_w=of_weights)

    return on_mlx(multiply, FLOAT32)(x)


def _gathered(
    name: str, mode: Mode, rows: int, inner: int, rng: np.random.Generator, where: str, issue: str
) -> PublicFault:
    """Two matrices; the first half of the rows takes one, the others the other, as sorted experts do."""
    parts = [Weights.draw(mode, 32, inner, rng) for _ in range(2)]
    x, half = one_term_rows(rows, inner), rows // 2

    def gather(x: mx.array) -> mx.array:
        held = [stored(part, BFLOAT16) for part in parts]
        w, scales, biases = (mx.stack([one[at] for one in held]) for at in range(3))  # type: ignore[misc]
        chosen = (mx.arange(rows) >= half).astype(mx.uint32)
        out = mx.gather_qmm(
            x[:, None], w, scales, biases, rhs_indices=chosen, transpose=True, sorted_indices=True, **parts[0].settings
        )
        return out[:, 0]

    exact = np.concatenate([x[:half] @ parts[0].values.T, x[half:] @ parts[1].values.T])
    return PublicFault(
        name,
        f"gathered products with quantised weights are wrong {where}",
        [MLX + issue],
        "M5, sorted indices, MLX up to 0.32.0",
        _INTEGERS,
        on_mlx(gather, BFLOAT16),
        lambda op: accuracy.wrong_rows(op, (x,), exact),
        (RIGHT,),
    )
