"""`python -m experiments.lora_on_quantised.shares RUN DIR`: the share of an adapter's effect that arrives, from a run.

RUN: the folder of a run of +exp=lora_on_quantised. Writes DIR/shares.json, and DIR/shares.png and .svg.

The effect is the difference of the last latents that the adapter makes in the fp32 model, at the same strength. What
arrives in a format is the difference that it makes there, to the same format without the adapter. Its projection on the
effect, in units of the effect, is the share; what is at right angles is noise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from precision_lab.numerics.intervals import mean_interval
from precision_lab.record import results
from precision_lab.record.files import write_json
from precision_lab.record.images import picture_path, read_image
from precision_lab.record.run import Run
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

FORMATS = ("affine8", "int8", "fp8_channel", "fp8_unscaled", "q4_0", "nf4", "affine4", "nvfp4_scaled", "mxfp4")
WAYS = {
    "live": ("live", "o", style.PALETTE[0]),
    "before": ("fused before quantising", "s", style.PALETTE[2]),
    "after": ("fused after, to nearest", "v", style.PALETTE[1]),
    "after_stochastic": ("fused after, stochastically", "^", style.PALETTE[3]),
}
STRENGTHS = {"half": 0.5, "double": 2.0}
CONFIDENCE = 0.95

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """A variant with the adapter: a format, a way of WAYS and a strength."""

    variant: str
    form: str
    way: str
    strength: float

    @classmethod
    def of(cls, variant: str) -> Arm | None:
        """None for a variant without the adapter, and for others that are no such combination."""
        for form in FORMATS:
            if variant.startswith(f"{form}_"):
                way, _, last = variant.removeprefix(f"{form}_").rpartition("_")
                if last not in STRENGTHS:
                    way = variant.removeprefix(f"{form}_")
                return cls(variant, form, way, STRENGTHS.get(last, 1.0)) if way in WAYS else None
        return None

    def fp32(self, run: Run) -> str:
        """The variant in fp32 with the adapter at the same strength."""
        return next((f"plain_{name}" for name, s in STRENGTHS.items() if s == self.strength), run.reference)


def share_and_noise(arrived: Values, effect: Values) -> tuple[float, float]:
    """The projection of `arrived` on `effect`, and the norm of what is at right angles, both relative to |effect|."""
    share = float(arrived.ravel() @ effect.ravel() / (effect.ravel() @ effect.ravel()))
    return share, float(np.linalg.norm(arrived - share * effect) / np.linalg.norm(effect))


def shares(run: Run) -> dict[str, dict[str, dict[str, Any]]]:
    """By format, and by way with its strength as variants name them, such as `after_half`.

    share, with its 95 % interval `ci95` over cases, and noise: of the last latents, see `share_and_noise`, the mean
    over cases. drift: rel. L2 from the fp32 model with the adapter at the same strength, the median. pixels: mean
    absolute difference to the picture of the same format without the adapter, in levels of 255, the mean over cases.
    fp32_pixels: the same of the fp32 model. by_chance: the share that the error of the format alone has, without any
    adapter.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {form: {} for form in FORMATS}
    for name in run.manifest.variants:
        if (arm := Arm.of(name)) is not None:
            found[arm.form][name.removeprefix(f"{arm.form}_")] = _measured(run, arm)
    return found


def _measured(run: Run, arm: Arm) -> dict[str, Any]:
    rows = []
    for case in _cases(run):
        latents = {name: _latents(run, name, case) for name in (arm.variant, arm.form, arm.fp32(run), "baseline")}
        found, alone, reference, plain = latents.values()
        effect = reference - plain
        share, noise = share_and_noise(found - alone, effect)
        by_chance, _ = share_and_noise(alone - plain, effect)
        drift = np.linalg.norm(found - reference) / np.linalg.norm(reference)
        pixels = _pixels(run, arm.variant, arm.form, case)
        rows.append((share, noise, drift, pixels, _pixels(run, arm.fp32(run), "baseline", case), by_chance))
    share, noise, drift, pixels, fp32_pixels, by_chance = np.array(rows, dtype=np.float64).T
    lo, hi = mean_interval(share, CONFIDENCE)
    return {
        "share": share.mean(),
        "ci95": [float(lo), float(hi)],
        "noise": noise.mean(),
        "drift": float(np.median(drift)),
        "pixels": pixels.mean(),
        "fp32_pixels": fp32_pixels.mean(),
        "by_chance": by_chance.mean(),
    }


def _cases(run: Run) -> list[tuple[int, int]]:
    return [(number, seed) for number in range(len(run.manifest.prompts)) for seed in run.manifest.seeds]


def _latents(run: Run, variant: str, case: tuple[int, int]) -> Values:
    found = results.read(results.path_of(run.path, variant, *case))
    if found is None:
        raise SystemExit(f"{run.path}: no result of {variant}, prompt {case[0]}, seed {case[1]}")
    return found.astype(np.float64)


def _pixels(run: Run, variant: str, other: str, case: tuple[int, int]) -> float:
    (one, _), (two, _) = (read_image(picture_path(run.path, name, *case)) for name in (variant, other))
    return float(np.abs(one.astype(np.float64) - two).mean())


def draw(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Drawing:
    """The share of each format and way at strength 1, with its interval, and of fused adapters over strengths."""
    figure = style.new_figure(3.9, w_pad=0.08)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1.25), sharey=True)
    for at, (way, (label, mark, colour)) in enumerate(WAYS.items()):
        arms = {place: ways[way] for place, ways in enumerate(found.values()) if way in ways}
        _points(left, [place + (at - 1.5) * 0.17 for place in arms], arms.values(), fmt=mark, color=colour, label=label)
    left.set_xticks(range(len(found)), [form if form.startswith("q") else form.replace("_", "\n") for form in found])
    left.set_ylabel("share of the effect that arrives")
    left.set_title("strength 1")
    left.legend(loc="lower left", fontsize=8.5)
    over_strengths = [form for form, ways in found.items() if "after_half" in ways]
    for at, form in enumerate(over_strengths):
        strengths = {0.5: "after_half", 1.0: "after", 2.0: "after_double"}
        places = [strength * 1.04 ** (at - 1) for strength in strengths]
        arms_of = [found[form][name] for name in strengths.values()]
        _points(right, places, arms_of, fmt="-v", color=style.PALETTE[(0, 4, 6)[at]], label=form)
    right.set_xscale("log", base=2)
    right.set_xticks([0.5, 1, 2], ["0.5", "1", "2"])
    right.set_xlabel("strength")
    right.set_title("fused after, to nearest")
    right.legend(loc="best", fontsize=8.5)
    for axes in (left, right):
        for level in (0, 1):
            axes.axhline(level, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
        axes.grid(axis="y")
    return Drawing("shares", "The share of an adapter's effect that arrives in the latents", figure, "")


def _points(axes: Axes, places: Sequence[float], arms: Iterable[Mapping[str, Any]], **look: Any) -> None:
    arms = list(arms)
    shown = np.array([own["share"] for own in arms])
    ends = np.array([own["ci95"] for own in arms])
    axes.errorbar(places, shown, np.abs(ends.T - shown), markersize=4.5, linewidth=1, capsize=1.5, **look)


def main(path: Path, out: Path) -> None:
    """Writes the numbers and the figure of one run."""
    out.mkdir(parents=True, exist_ok=True)
    found = shares(Run.open(path).completed())
    write_json(out / "shares.json", found)
    with style.theme():
        style.save(draw(found), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
