"""Attention: detects which intermediates are rounded to the storage format, with inputs where rounding decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from precision_lab.device.behaviour.finding import Outcome
from precision_lab.device.behaviour.interior import interior_bits
from precision_lab.device.behaviour.storage import Array, Storage

# attend(q, k, v, scale); q and the result: (1, 1, queries, channels), k and v: (1, 1, keys, channels)
Attention = Callable[[Array, Array, Array, float], Array]


@dataclass(frozen=True)
class Shape:
    """The sizes from which a library chooses its kernel."""

    queries: int
    keys: int
    channels: int


def rounding_places(attend: Attention, storage: Storage, shape: Shape) -> Outcome:
    """Names which of q * scale, scores and probabilities are rounded to the format; for 16-bit formats only.

    Only two keys take part. The scores of all others are so low that their probability is 0 in any format.
    """
    rounded, evidence_parts = [], []
    for name, probe in (
        ("q*scale", _scaled_query),
        ("scores", _scores),
        ("probabilities", _probabilities),
    ):
        answer, evidence = probe(attend, storage, shape)
        evidence_parts.append(evidence)
        if answer == "rounded":
            rounded.append(name)
        elif answer != "kept":
            rounded.append(f"{name} ({answer})")
    return Outcome(", ".join(rounded) or "none", "; ".join(evidence_parts))


def _pair(shape: Shape, storage: Storage) -> tuple[Array, Array, Array, tuple[int, int]]:
    """q, k, v that are zero except in the last channel, which masks all keys but those at the two returned indices."""
    places = (shape.keys // 3, shape.keys - 1)
    q, k, v = (np.zeros((1, 1, n, shape.channels)) for n in (shape.queries, shape.keys, shape.keys))
    q[..., -1] = 1.0
    k[..., -1] = -(2.0**14)
    k[0, 0, places, -1] = 0.0
    return q, k, v, places


def _scaled_query(attend: Attention, storage: Storage, shape: Shape) -> tuple[str, str]:
    """Tests whether q * scale is rounded: q.k is exactly 0, but becomes -1 if q * scale is rounded first.

    With a = scale = 1 + e, q = (a, 1) and k = (c, -c a): rounding a * scale = 1 + 2e + e^2 loses e^2 = 1 / c.
    """
    e = 2.0 ** -((storage.bits + 2) // 2)
    c = e**-2
    q, k, v, (first, _) = _pair(shape, storage)
    q[..., 0], q[..., 1] = 1 + e, 1.0
    k[0, 0, first, :2] = c, -c * (1 + e)
    v[0, 0, first, 0] = 1.0
    assert all(storage.holds(a) for a in (q, k, v))
    share = float(attend(q, k, v, 1 + e)[0, 0, 0, 0])
    return _nearest(share, {"kept": 0.5, "rounded": _sigmoid(-1)}, "equal scores get a share of")


def _scores(attend: Attention, storage: Storage, shape: Shape) -> tuple[str, str]:
    """Tests whether scores are rounded: A + 1 and A become equal, because values of the format are 4 apart there."""
    large = 2.0 ** (storage.bits + 1)
    q, k, v, (first, second) = _pair(shape, storage)
    q[..., 0], q[..., 1] = 1.0, 1.0
    k[0, 0, first, :2] = large, 1.0
    k[0, 0, second, 0] = large
    v[0, 0, first, 0] = 1.0
    assert all(storage.holds(a) for a in (q, k, v))
    share = float(attend(q, k, v, 1.0)[0, 0, 0, 0])
    return _nearest(share, {"kept": _sigmoid(1), "rounded": 0.5}, "a score greater by 1 gets a share of")


def _probabilities(attend: Attention, storage: Storage, shape: Shape) -> tuple[str, str]:
    """Tests whether probabilities are rounded: values 1 and -r, r near e^s, for scores s and 0, leave p1 - r p2.

    The library may round the probabilities, or exp(score - max) before the division (as FlashAttention does).
    """
    scores = [0.5 + 0.3125 * i for i in range(6)]
    ratios = [float(storage.round(np.exp(s))) for s in scores]
    q, k, v, (first, second) = _pair(shape, storage)
    q[..., 0] = 1.0
    v[0, 0, first, 0] = 1.0
    results = []
    for s, r in zip(scores, ratios, strict=True):
        k[0, 0, first, 0] = s
        v[0, 0, second, 0] = -r
        results.append(float(attend(q, k, v, 1.0)[0, 0, 0, 0]))
    p1 = np.array([_sigmoid(s) for s in scores])
    p2, ratio = 1 - p1, np.array(ratios)
    small = np.exp(-np.array(scores))
    predicted = {
        "kept": p1 - ratio * p2,
        "rounded": storage.round(p1) - ratio * storage.round(p2),
        "rounded before the division": (1 - ratio * storage.round(small)) * p1,
    }
    distances = {name: float(np.linalg.norm(np.array(results) - value)) for name, value in predicted.items()}
    best, second_best = sorted(distances, key=distances.__getitem__)[:2]
    clear = distances[best] < 0.2 * distances[second_best]
    evidence = f"p1 - r p2 lies {distances[best]:.1e} from '{best}', {distances[second_best]:.1e} from '{second_best}'"
    return (best if clear else "unclear"), evidence


def _nearest(value: float, predicted: dict[str, float], description: str) -> tuple[str, str]:
    name = next((name for name, target in predicted.items() if abs(value - target) < 0.02), "unclear")
    return name, f"{description} {value:.4f}"


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def attention_bits(attend: Attention, storage: Storage, shape: Shape, rng: np.random.Generator) -> Outcome:
    """Interior bits (see interior.py) on random q, k and v. Scores have a deviation of 2; the scale is sum p |v|."""
    q, k, v = (
        storage.round(rng.standard_normal((1, 1, n, shape.channels)) * spread)
        for n, spread in ((shape.queries, 2.0), (shape.keys, 1.0), (shape.keys, 1.0))
    )
    factor = float(storage.round(shape.channels**-0.5))
    scores = factor * q[0, 0] @ k[0, 0].T
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    exact, magnitude = p @ v[0, 0], p @ np.abs(v[0, 0])
    return interior_bits(lambda q, k, v: attend(q, k, v, factor)[0, 0], (q, k, v), exact, magnitude, storage)
