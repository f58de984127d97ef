"""The composition of a block's time: its pieces, compared with the measured block and with the ideal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from experiments.benchmarks.gpu.shapes import SHAPES, Shape
from experiments.benchmarks.gpu.store import rows
from experiments.benchmarks.gpu.summary import FAST, PLAIN, chosen

Key = tuple[str, str, int]
"""Name, implementation and number of tokens of a piece."""

Recipe = list[tuple[str, Key, int]]
"""Category, piece and count of everything in a block that is measured alone."""


class Recipes(Protocol):
    """What `recipes` of an architecture has: the composition of a block of each model, for a number of image tokens."""

    def plain(self, shape: Shape, tokens: int) -> Recipe: ...

    def fast(self, shape: Shape, tokens: int) -> Recipe: ...


@dataclass(frozen=True)
class PieceResult:
    """One piece: median seconds, and the resulting rates."""

    name: str
    group: str
    way: str
    tokens: int
    flops: float
    nbytes: float
    chained: bool
    seconds: float

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.seconds

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes / self.seconds


@dataclass(frozen=True)
class Ceilings:
    """The highest measured rates of products, in FLOP/s, and of copying, in bytes/s."""

    flops: float
    nbytes: float

    def ideal(self, piece: PieceResult) -> float:
        """Seconds if the slower of arithmetic and memory traffic ran at its ceiling and hid the other."""
        return max(piece.flops / self.flops, piece.nbytes / self.nbytes)


@dataclass(frozen=True)
class Composition:
    """One implementation of a block: seconds by category; `rest` is the time of the block beyond its pieces."""

    side: int
    name: str
    categories: Mapping[str, float]
    whole: float | None


CATEGORIES = (
    *("image products", "text products", "attention", "norm and modulate", "gated add", "GELU", "SwiGLU"),
    *("RMS norm, RoPE, joining", "modulation vectors", "rest"),
)
OWN_OPERATIONS = ("image products", "text products", "attention")
"""The categories that no fusion removes."""


def piece_results(record: Mapping[str, Any]) -> dict[Key, PieceResult]:
    times: dict[Key, list[float]] = {}
    for row in rows(record, "pieces", "time"):
        times.setdefault((row["piece"], row["way"], row["tokens"]), []).append(row["seconds"])
    results = {}
    for row in rows(record, "pieces", "piece"):
        key = row["piece"], row["way"], row["tokens"]
        if key in times:
            fields = (row[name] for name in ("piece", "group", "way", "tokens", "flops", "nbytes", "chained"))
            results[key] = PieceResult(*fields, seconds=float(np.median(times[key])))
    return results


def ceilings(pieces: Mapping[Key, PieceResult]) -> Ceilings | None:
    flops = [piece.flops_per_second for piece in pieces.values() if piece.name.startswith(("product", "square"))]
    copies = [piece.bytes_per_second for piece in pieces.values() if piece.name == "copy"]
    return Ceilings(max(flops), max(copies)) if flops and copies else None


def compositions(record: Mapping[str, Any]) -> list[Composition]:
    """For each size: the plain block, the fast block, and the pieces of the fast block at the ceilings."""
    pieces = piece_results(record)
    limits = ceilings(pieces)
    shape = _shape(record)
    if limits is None or shape is None:
        return []
    found = []
    for side in shape.forward_sides:
        tokens = shape.tokens(side)
        recipes: Recipes = shape.module("recipes")
        for name, recipe in ((PLAIN, recipes.plain(shape, tokens)), (FAST, recipes.fast(shape, tokens))):
            if all(key in pieces for _, key, _ in recipe):
                timed = _summed([(category, pieces[key].seconds, count) for category, key, count in recipe])
                whole = block_seconds(record, name, side)
                rest = max(0.0, whole - sum(timed.values())) if whole else 0.0
                found.append(Composition(side, name, {**timed, "rest": rest}, whole))
        recipe = recipes.fast(shape, tokens)
        if all(key in pieces for _, key, _ in recipe):
            ideal = _summed([(category, limits.ideal(pieces[key]), count) for category, key, count in recipe])
            found.append(Composition(side, "ideal", ideal, sum(ideal.values())))
    return found


def block_seconds(record: Mapping[str, Any], arm: str, side: int) -> float | None:
    """Seconds of a block within the model: the median over rounds of the time per additional block."""
    samples = chosen(rows(record, "block", "time"), arm=arm, side=side)
    depths = sorted({row["depth"] for row in samples})
    if len(depths) < 2:
        return None
    few, many = ({r["round"]: r["seconds"] for r in chosen(samples, depth=d)} for d in (depths[0], depths[-1]))
    differences = [many[index] - few[index] for index in few.keys() & many.keys()]
    return float(np.median(differences)) / (depths[-1] - depths[0]) if differences else None


def own_operations(record: Mapping[str, Any], side: int) -> float | None:
    """Seconds of the products and the attention of all blocks of `fast`, each measured alone, one after another."""
    shape, pieces = _shape(record), piece_results(record)
    if shape is None or side not in shape.forward_sides:
        return None
    recipe = [entry for entry in shape.module("recipes").fast(shape, shape.tokens(side)) if entry[0] in OWN_OPERATIONS]
    if not all(key in pieces for _, key, _ in recipe):
        return None
    return shape.config.num_layers * sum(pieces[key].seconds * count for _, key, count in recipe)


def _summed(parts: list[tuple[str, float, int]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for category, seconds, count in parts:
        sums[category] = sums.get(category, 0.0) + seconds * count
    return {category: sums[category] for category in CATEGORIES if category in sums}


def _shape(record: Mapping[str, Any]) -> Shape | None:
    """The shape of the pieces."""
    part = record["parts"].get("pieces.0")
    return SHAPES[part["environment"]["shape"]] if part else None
