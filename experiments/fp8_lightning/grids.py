"""`python -m experiments.fp8_lightning.grids RUN DIR`: grids and grain of a run of +exp=fp8_lightning.

Every picture is compared with two: that of the fp32 model with the adapter in the same steps, and that of the fp32
model without it in many steps. Lines are then added to pictures, to find the faintest that the run would have shown.
Writes DIR/grids.json, and DIR/grids.png and .svg.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.analysis.pictures import reference_of
from precision_lab.analysis.ratios import noise_floor, over_units
from precision_lab.numerics.grid import PERIODS
from precision_lab.numerics.intervals import mean_interval
from precision_lab.numerics.metrics import compare_images
from precision_lab.numerics.pictures import MEASURES, OF_THE_REFERENCE, Pair
from precision_lab.record.files import write_json
from precision_lab.record.images import picture_path, read_image
from precision_lab.record.run import Run
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

MANY = "many_steps"
SUBJECTS, AGAINST, TWIN = ("fp8_channel_live", "fp8_live"), "bf16_live", "bf16_live_twin"
NAMES = {
    "bf16_live": "bf16, adapter live",
    "fp8_live": "fp8, live",
    "fp8_before": "fp8, fused before",
    "fp8_after": "fp8, fused after",
    "fp8_after_stochastic": "fp8, after, stochastic",
    "fp8_tensor_live": "fp8, a scale a weight, live",
    "fp8_channel_live": "fp8, a scale a channel, live",
    "fp8_channel_before": "fp8, a channel, fused before",
    "fp8_channel_after": "fp8, a channel, fused after",
    "fp8_channel_after_stochastic": "fp8, a channel, after, stochastic",
    "q5_0_live": "Q5_0, live",
    "bf16_live_8": "8 steps: bf16, live",
    "fp8_live_8": "8 steps: fp8, live",
    "fp8_before_8": "8 steps: fp8, fused before",
    "fp8_after_8": "8 steps: fp8, fused after",
    "fp8_after_stochastic_8": "8 steps: fp8, after, stochastic",
}
AMPLITUDES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Of the lines that are added to find what the run would see, in levels of 255."""

GRIDS = tuple(f"grid_{period}" for period in PERIODS)

Pixels = npt.NDArray[np.uint8]


def with_lines(image: Pixels, period: int, amplitude: float) -> Pixels:
    """The picture (height, width, channels) with a sine of `period` pixels along its rows added."""
    phase = 2 * np.pi * np.arange(image.shape[1]) / period
    lined = image + amplitude * np.cos(phase)[None, :, None]
    return np.clip(np.round(lined), 0, 255).astype(np.uint8)


def of_pictures(
    run: Run, variant: str, reference: str, name: str, change: Callable[[Pixels], Pixels] = lambda image: image
) -> pd.Series:
    """By case (prompt_id, seed), a measure of the picture, changed first, beside that of another variant."""
    values = {}
    for number in range(len(run.manifest.prompts)):
        for seed in run.manifest.seeds:
            (image, _), (ref, _) = (
                read_image(picture_path(run.path, each, number, seed)) for each in (variant, reference)
            )
            value = MEASURES[name].measure(Pair(change(image), ref))
            if value not in OF_THE_REFERENCE:
                values[number, seed] = max(float(value), MEASURES[name].least)
    index = pd.MultiIndex.from_tuples(list(values), names=["prompt_id", "seed"])
    return pd.Series(list(values.values()), index, dtype=float)


def _psnr(run: Run, variant: str, reference: str) -> float:
    """The median over cases, in dB."""
    found = []
    for number in range(len(run.manifest.prompts)):
        for seed in run.manifest.seeds:
            (image, _), (ref, _) = (
                read_image(picture_path(run.path, each, number, seed)) for each in (variant, reference)
            )
            found.append(float(compare_images(image, ref).values["psnr_db"]))
    return float(np.median(found))


def _typical(values: pd.Series) -> dict[str, Any]:
    """The geometric mean over cases and its 95 % interval."""
    logs = np.log(values.to_numpy(float))
    lo, hi = mean_interval(logs, 0.95)
    return {"mean": float(np.exp(logs.mean())), "ci95": [float(np.exp(lo)), float(np.exp(hi))]}


def measured(run: Run) -> dict[str, Any]:
    """By variant: grids and grain beside the reference with the same steps (`same`) and beside many steps (`many`)."""
    rows: dict[str, Any] = {}
    for variant in NAMES:
        references = {"same": reference_of(run, variant), "many": MANY}
        rows[variant] = {
            key: {
                **{name: _typical(of_pictures(run, variant, reference, name)) for name in (*GRIDS, "flat_grain")},
                "psnr_db": _psnr(run, variant, reference),
            }
            for key, reference in references.items()
        }
    rows[MANY] = {"flat_grain": _typical(of_pictures(run, MANY, MANY, "flat_grain"))}
    return rows


def visible(run: Run, subject: str, period: int) -> float | None:
    """The smallest amplitude of AMPLITUDES at which a claim on the grid of `period` would be supported.

    Lines are added to the pictures of `subject`, which are compared with those of bf16_live, as the claims do. None if
    the largest does not suffice.
    """
    name = f"grid_{period}"
    against = of_pictures(run, AGAINST, reference_of(run, AGAINST), name)
    floor = noise_floor(of_pictures(run, TWIN, reference_of(run, TWIN), name), against)
    reference = reference_of(run, subject)
    for amplitude in AMPLITUDES:
        lined = of_pictures(
            run,
            subject,
            reference,
            name,
            lambda image, a=amplitude: with_lines(image, period, a),  # type: ignore[misc]
        )
        if over_units(lined, against).lo > 1 + floor:
            return amplitude
    return None


def draw(rows: Mapping[str, Any]) -> Drawing:
    """Grid energy of each variant, a panel for each period."""
    figure = style.new_figure(4.6, w_pad=0.06)
    panels = figure.subplots(1, len(PERIODS), sharey=True)
    looks = {
        "same": ("difference to the fp32 model with the adapter, same steps", "o", style.PALETTE[0], -0.13),
        "many": ("difference to the fp32 model without it, 20 steps", "D", style.PALETTE[1], 0.13),
    }
    for axes, period in zip(panels, PERIODS, strict=True):
        for key, (label, mark, colour, shift) in looks.items():
            own = [rows[variant][key][f"grid_{period}"] for variant in NAMES]
            means, ends = np.array([each["mean"] for each in own]), np.array([each["ci95"] for each in own])
            places = np.arange(len(NAMES)) + shift
            axes.errorbar(
                means, places, xerr=np.abs(ends.T - means), fmt=mark, color=colour, markersize=4, linewidth=1,
                label=label,
            )  # fmt: skip
        axes.axvline(1, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
        axes.set_xlim(0.75, 2.1)
        axes.set_title(f"lines every {period} pixels")
        axes.set_xlabel("grid energy, 1 is no grid")
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(NAMES)), list(NAMES.values()))
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=8.5)
    return Drawing("grids", "Grid energy by variant and period", figure, "")


def main(path: Path, out: Path) -> None:
    """Writes the numbers and the figure of one run."""
    out.mkdir(parents=True, exist_ok=True)
    run = Run.open(path).completed()
    rows = measured(run)
    write_json(
        out / "grids.json",
        {
            "variants": rows,
            "visible_levels": {
                subject: {str(period): visible(run, subject, period) for period in PERIODS} for subject in SUBJECTS
            },
        },
    )
    with style.theme():
        style.save(draw(rows), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
