"""Scale equivalence: whether techniques preserve the function of the model and, if not, where they change it.

A technique is evaluated twice on random inputs. The first evaluation compares it in fp32 with the plain model in fp32:
a difference larger than that of another order of summation is a change of the function. The second evaluation is in the
dtype of interest; the additional difference is rounding.

Scaling by powers of two commutes with rounding, so a correct rewrite of that kind is identical bit for bit. A wider
format could not strengthen that proof. Float64 is unsuitable: in MLX 0.32 it exists on the CPU only, its exp, cos and
norms have the accuracy of fp32 (1e-7 to 4e-7 measured), and some layers set fp32 explicitly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from precision_lab.instrument.arrays import to_numpy
from precision_lab.lab.subject import Case, Source, components_of
from precision_lab.numerics.metrics import compare
from precision_lab.techniques.base import Technique, applied

Techniques = Mapping[str, Technique]
Outputs = Mapping[str, np.ndarray]

EVALUATIONS = 3
"""Evaluations of a draw in a proof: plain, with the techniques, and with the noise technique."""

MARGIN = 10.0
"""A change of up to this multiple of the change by the noise technique counts as rounding."""


class Draw(NamedTuple):
    """One evaluation: step `number` of a case, from the initial state of the case."""

    case: Case
    number: int


def draws_of(source: Source, cases: Sequence[Case], count: int = 3, seed: int = 0) -> list[Draw]:
    """Random inputs: random steps of the cases that the source draws (`draws(count, seed)`), or else of `cases`."""
    own = getattr(source, "draws", None)
    if own is None:
        drawn = [cases[i % len(cases)] for i in range(count)]
    else:
        drawn = [Case(i, case.prompt, case.seed, case.settings) for i, case in enumerate(own(count, seed))]
    rng = np.random.default_rng(seed)
    return [Draw(case, int(rng.integers(source.steps(case)))) for case in drawn]


def evaluate(source: Source, dtype: mx.Dtype, draw: Draw, *techniques: Techniques) -> Outputs:
    """The `output` and `result` of one step and, if there is one, the `picture` of the result; fp32 arrays by name."""
    merged: dict[str, Technique] = {}
    for name, technique in (pair for group in techniques for pair in group.items()):
        merged[name if name not in merged else f"{name}.{len(merged)}"] = technique
    subject = source.load(dtype)
    with applied(components_of(subject, source.layout), merged):
        step = subject.step(subject.start(draw.case), draw.number)
        picture = subject.picture(step.state)
        outputs = {"output": step.output, "result": step.result}
        outputs |= {} if picture is None else {"picture": picture}
        return {name: to_numpy(array.astype(mx.float32)) for name, array in outputs.items()}


def check(source: Source, techniques: Techniques) -> None:
    """Applies the techniques once; nothing is computed. Raises InputError for those that do not fit the model."""
    with applied(components_of(source.load(mx.float32), source.layout), techniques):
        pass


@dataclass(frozen=True)
class Proof:
    """The largest relative L2 change over the draws, by output.

    changes: for the techniques. floors: for the noise technique, the same function with different rounding.
    """

    changes: Mapping[str, float]
    floors: Mapping[str, float]

    @property
    def holds(self) -> bool:
        """Whether every change is within rounding; False if one is NaN."""
        return all(self.changes[name] <= MARGIN * floor for name, floor in self.floors.items())

    @property
    def identical(self) -> bool:
        return not any(self.changes.values())


def prove(
    source: Source,
    techniques: Techniques,
    inputs: Sequence[Draw],
    noise: Techniques,
    on_evaluation: Callable[[], None] = lambda: None,
) -> Proof:
    """Compares the techniques with the plain model, both in fp32. `noise` is the same function with other rounding.

    A technique that rounds on purpose has an attribute `unrounded`, its form without rounding, which is compared
    instead. on_evaluation: called after each of the EVALUATIONS of every draw.
    """
    exact = {name: getattr(technique, "unrounded", technique) for name, technique in techniques.items()}
    changes: list[dict[str, float]] = []
    floors: list[dict[str, float]] = []
    for draw in inputs:
        plain = evaluate(source, mx.float32, draw)
        on_evaluation()
        for rows, own in ((changes, exact), (floors, noise)):
            rows.append(_distances(evaluate(source, mx.float32, draw, own), plain))
            on_evaluation()
    return Proof(_worst(changes), _worst(floors))


@dataclass(frozen=True)
class Split:
    """Relative L2 error of the output, the mean over draws. Errors add as vectors, so the parts need not add up.

    - `total`: the techniques in the dtype against the plain model in fp32, the error that users see;
    - `function`: both in fp32;
    - `rounding`: the techniques in the dtype against themselves in fp32;
    - `plain_rounding`: the plain model in the dtype against itself in fp32.
    """

    total: float
    function: float
    rounding: float
    plain_rounding: float


def split(source: Source, dtype: mx.Dtype, techniques: Techniques, inputs: Sequence[Draw]) -> Split:
    """Splits the drift into a changed function and rounding. NaN where an output is not finite."""
    rows = []
    for draw in inputs:
        plain, plain_low = (evaluate(source, d, draw)["output"] for d in (mx.float32, dtype))
        changed, changed_low = (evaluate(source, d, draw, techniques)["output"] for d in (mx.float32, dtype))
        pairs = ((changed_low, plain), (changed, plain), (changed_low, changed), (plain_low, plain))
        rows.append([_rel_l2(x, reference) for x, reference in pairs])
    return Split(*(float(mean) for mean in np.mean(rows, axis=0)))


def attribute(
    source: Source, techniques: Techniques, inputs: Sequence[Draw], parts: Mapping[str, Techniques]
) -> dict[str, float]:
    """The change of the function, as `all`, and the change that remains in a model reduced by each of `parts`.

    Each is the relative L2 change of the output, the mean over draws, between the reduced model with the techniques and
    without them.
    """
    changes = {}
    for name, removed in {"all": {}, **parts}.items():
        distances = []
        for draw in inputs:
            changed = evaluate(source, mx.float32, draw, removed, techniques)
            distances.append(_rel_l2(changed["output"], evaluate(source, mx.float32, draw, removed)["output"]))
        changes[name] = float(np.mean(distances))
    return changes


def _distances(outputs: Outputs, reference: Outputs) -> dict[str, float]:
    return {name: _rel_l2(outputs[name], reference[name]) for name in reference}


def _rel_l2(x: np.ndarray, reference: np.ndarray) -> float:
    return float(compare(x, reference).values["rel_l2"])


def _worst(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.max([row[name] for row in rows])) for name in rows[0]}
