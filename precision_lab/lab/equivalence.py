"""Scale-equivalence: whether techniques leave the function what it is, and if not, what changes it.

A technique is judged twice, on random inputs. In fp32 against the plain model in fp32: what differs there, beyond what
another order of summation makes differ, is a changed function, whatever the technique claims. Then in the dtype of
interest: what that adds is rounding.

Scaling by powers of two commutes with rounding, so a correct rewrite of that kind comes out identical bit for bit: a
proof that no wider format could sharpen. Float64 could not serve: in MLX 0.32 it exists on the CPU only, exp, cos, and
the norms have fp32's accuracy in it (1e-7 to 4e-7 measured), and the layers of the model state fp32 themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from precision_lab.instrument.arrays import to_numpy
from precision_lab.lab.models import Models
from precision_lab.model.qwen_image.pipeline import Pipeline, denoise
from precision_lab.model.qwen_image.rope import Grid
from precision_lab.numerics.metrics import compare
from precision_lab.techniques.base import Technique, applied
from precision_lab.techniques.parts.ablation import HomogeneousActivation, WithoutBias
from precision_lab.techniques.reordered_sums import ReorderedSums

Techniques = Mapping[str, Technique]
Outputs = Mapping[str, np.ndarray]

MARGIN = 10.0
"""A change counts as rounding up to this multiple of what reordering the sums of five linears a block changes."""

FEED_FORWARD_PARTS: Mapping[str, Techniques] = {
    "biases": {"relu": HomogeneousActivation()},
    "gelu": {"no_bias": WithoutBias()},
    "neither": {"relu": HomogeneousActivation(), "no_bias": WithoutBias()},
}
"""What can be left of a feed-forward's inhomogeneity, and the parts to take out of the model to leave only that."""


class Draw(NamedTuple):
    """The input of one evaluation: a seed for latents, sigmas before and after the step, a prompt, a token grid."""

    seed: int
    levels: tuple[float, float]
    prompt: str
    grid: Grid


def draws(count: int = 3, seed: int = 0) -> list[Draw]:
    """Random latents, sigmas over the whole range and small odd grids; prompts of different lengths."""
    rng = np.random.default_rng(seed)
    words = np.array(["red", "a", "circle", "two", "on", "blue", "small", "star", "white", "left"])
    found = []
    for _ in range(count):
        sigma = rng.uniform(0.05, 1.0)
        prompt = " ".join(rng.choice(words, rng.integers(2, 9)))
        grid = Grid(*(int(n) for n in rng.integers(2, 6, 2)))
        found.append(Draw(int(rng.integers(2**31)), (sigma, sigma * rng.uniform(0.5, 0.95)), prompt, grid))
    return found


def evaluate(pipeline: Pipeline, draw: Draw, *techniques: Techniques) -> Outputs:
    """One guided step and the decoding of its latents, which pass every component: fp32 arrays by name."""
    merged = {f"{i}.{name}": technique for i, group in enumerate(techniques) for name, technique in group.items()}
    with applied(pipeline.components, merged):
        cond, uncond = (pipeline.encode([prompt]) for prompt in (draw.prompt, " "))
        latents = pipeline.noise(draw.seed, draw.grid)
        levels = np.array(draw.levels, np.float32)
        loop = denoise(pipeline.transformer, pipeline.sampler, latents, levels, draw.grid, cond, uncond, 4.0)
        step = next(loop)
        found = {"velocity": step.velocity, "latents": step.latents, "pixels": pipeline.decode(step.latents, draw.grid)}
        return {name: to_numpy(array.astype(mx.float32)) for name, array in found.items()}


@dataclass(frozen=True)
class Proof:
    """`changes`: relative L2 by output, the worst draw; `floors`: the same of equal functions that round otherwise."""

    changes: Mapping[str, float]
    floors: Mapping[str, float]

    @property
    def holds(self) -> bool:
        """Whether every output stays within rounding; not, where one is NaN."""
        return all(self.changes[name] <= MARGIN * floor for name, floor in self.floors.items())

    @property
    def identical(self) -> bool:
        return not any(self.changes.values())


def prove(pipeline: Pipeline, techniques: Techniques, inputs: Sequence[Draw]) -> Proof:
    """The techniques against the plain model; `pipeline` computes in fp32.

    A technique that rounds on purpose states with `unrounded` what it is without that; then that is looked at.
    """
    exact = {name: getattr(technique, "unrounded", technique) for name, technique in techniques.items()}
    noise = {"noise": ReorderedSums()}
    changes, floors = [], []
    for draw in inputs:
        plain = evaluate(pipeline, draw)
        changes.append(_distances(evaluate(pipeline, draw, exact), plain))
        floors.append(_distances(evaluate(pipeline, draw, noise), plain))
    return Proof(_worst(changes), _worst(floors))


@dataclass(frozen=True)
class Split:
    """Relative L2 of the velocity, the mean over draws; errors add up as vectors, so the parts need not sum up.

    - `total`: the techniques in the dtype against the plain model in fp32, what users see;
    - `function`: both in fp32;
    - `rounding`: the techniques in the dtype against themselves in fp32;
    - `plain_rounding`: the plain model in the dtype against itself in fp32.
    """

    total: float
    function: float
    rounding: float
    plain_rounding: float


def split(models: Models, dtype: mx.Dtype, techniques: Techniques, inputs: Sequence[Draw]) -> Split:
    """How much of the drift is a changed function, and how much rounding. NaN where a velocity is not finite."""
    rows = []
    for draw in inputs:
        plain, plain_low = (evaluate(models(d), draw)["velocity"] for d in (mx.float32, dtype))
        changed, changed_low = (evaluate(models(d), draw, techniques)["velocity"] for d in (mx.float32, dtype))
        pairs = ((changed_low, plain), (changed, plain), (changed_low, changed), (plain_low, plain))
        rows.append([_rel_l2(x, reference) for x, reference in pairs])
    return Split(*(float(mean) for mean in np.mean(rows, axis=0)))


def attribute(
    pipeline: Pipeline,
    techniques: Techniques,
    inputs: Sequence[Draw],
    parts: Mapping[str, Techniques] = FEED_FORWARD_PARTS,
) -> dict[str, float]:
    """The change of function, `all`, and what is left of it in a model reduced to each of `parts`: relative L2.

    The velocity, the mean over draws. The reduced model is compared with itself, with the techniques and without.
    """
    found = {}
    for name, removed in {"all": {}, **parts}.items():
        distances = [
            _rel_l2(evaluate(pipeline, d, removed, techniques)["velocity"], evaluate(pipeline, d, removed)["velocity"])
            for d in inputs
        ]
        found[name] = float(np.mean(distances))
    return found


def _distances(found: Outputs, reference: Outputs) -> dict[str, float]:
    return {name: _rel_l2(found[name], reference[name]) for name in reference}


def _rel_l2(x: np.ndarray, reference: np.ndarray) -> float:
    return float(compare(x, reference).values["rel_l2"])


def _worst(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.max([row[name] for row in rows])) for name in rows[0]}
