"""Where composed arithmetic rounds: a product before an addition, a Python scalar, a norm before weight and bias."""

from __future__ import annotations

import numpy as np

from precision_lab.device.behaviour.bridge import Op
from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.storage import Array, Storage


def multiply_add(op: Op, storage: Storage) -> Outcome:
    """Whether a * b + c rounds the product: for a = b = 1 + e and c = -(1 + 2e) it is 0 if rounded, e^2 if fused."""
    e = 2.0 ** -((storage.bits + 2) // 2)
    ones = np.ones(64)
    out = op(ones * (1 + e), ones * (1 + e), -ones * (1 + 2 * e))
    answer = {e * e: "kept", 0.0: "rounded"}.get(float(out[0]), "neither")
    return Outcome(
        answer if (out == out[0]).all() else "neither",
        f"(1 + e)^2 - (1 + 2e) for e = {e:.3g} came to {out.flat[0]:.3g}",
        float(out.flat[0]),
    )


def python_scalar(times: Op, number: float, storage: Storage) -> Outcome:
    """Whether x * number rounds a Python number that the format cannot represent, for x = 3, 5, ... 201."""
    x = np.arange(3.0, 203.0, 2.0)
    out = times(x)
    kept, rounded = storage.round(x * number), storage.round(x * float(storage.round(number)))
    answer = "neither"
    for name, predicted in (("kept", kept), ("rounded to the format", rounded)):
        if np.array_equal(out, predicted):
            answer = name
    evidence = f"{int((out == rounded).sum())} of {x.size} products as from a rounded {number}, "
    return Outcome(answer, evidence + f"{int((out == kept).sum())} as from an exact one", float(out[0] / x[0]))


def norm_rounding(norm: Op, storage: Storage, rng: np.random.Generator, biased: bool) -> Outcome:
    """Whether a norm rounds the normalised value, or its product with the weight, to the format (16-bit formats).

    The call is `norm(x, weight)`, or `norm(x, weight, bias)` if `biased`, with a negligible eps. The bias subtracts the
    rounded product, which leaves only the part that an unrounded product has.
    """
    width = 256
    x = storage.round(rng.standard_normal((64, width)))
    weight = storage.round(0.5 + rng.random(width))
    centred = x - x.mean(axis=1, keepdims=True) if biased else x
    normal = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True))
    # the bias cancels the product of row 0
    bias = -storage.round(normal[0] * weight) if biased else np.zeros(width)
    predicted: dict[str, Array] = {}
    for name, first, second in (
        ("none", _keep, _keep),
        ("normalised value", storage.round, _keep),
        ("product with the weight", _keep, storage.round),
        ("normalised value, product with the weight", storage.round, storage.round),
    ):
        if biased or second is _keep:
            predicted[name] = storage.round(second(first(normal) * weight) + bias)
    out = norm(x, weight, bias) if biased else norm(x, weight)
    same = {name: float((out == value).mean()) for name, value in predicted.items()}
    best = max(same, key=same.__getitem__)
    listed = ", ".join(f"{share:.1%} as if rounded: {name}" for name, share in same.items())
    return Outcome(best if same[best] > 0.99 else "unclear", listed, same[best], "share of results")


def _keep(x: Array) -> Array:
    return x
