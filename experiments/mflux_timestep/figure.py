"""The figure of the page: distance from fp32 over depth, and over timesteps for two kinds of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

BLUE, ORANGE, GREEN = style.PALETTE[:3]
LOOKS = {
    "mflux": (ORANGE, "-"),
    "mflux, mended": (GREEN, "-"),
    "ours": (BLUE, (0, (4, 1.5))),
    "diffusers": (style.MUTED, (0, (1, 1))),
}
PANELS = {"drawn": "drawn weights, 60 blocks", "trained": "trained weights, 60 blocks"}


def draw(numbers: Mapping[str, Any]) -> Drawing:
    """Three panels with one axis of distances for the drawn weights, and one for the trained ones."""
    figure = style.new_figure(3.9, w_pad=0.06)
    left, middle, right = figure.subplots(1, 3)
    depths = {int(depth): found for depth, found in numbers["depth"].items()}
    _lines(left, depths, "o")
    left.set(title="drawn weights, timestep 1/2", xlabel="blocks", ylabel="rel. L2 from fp32 (lower is nearer)")
    found = [list(depths.values())]
    for axes, (weights, title) in zip((middle, right), PANELS.items(), strict=True):
        exact, rounded = (_by_timestep(numbers["timesteps"][weights][kind]) for kind in ("exact", "rounded"))
        _lines(axes, exact, "o")
        _lines(axes, rounded, "x")
        axes.set(title=title, xlabel="timestep (crosses: bfloat16 rounds it)")
        found.append([*exact.values(), *rounded.values()])
    drawn = [value for points in (*found[0], *found[1]) for value in points.values()]
    trained = [value for points in found[2] for value in points.values()]
    for axes, values in ((left, drawn), (middle, drawn), (right, trained)):
        style.log_axis(axes, *style.log_range([values]))
    middle.tick_params(labelleft=False)
    left.legend(loc="upper left", bbox_to_anchor=(0.1, 0.62), fontsize=8.5)
    return Drawing("mflux_timestep", "mflux in bfloat16, before and after one operation is mended", figure, "")


def _lines(axes: Axes, points: Mapping[Any, Mapping[str, float]], mark: str) -> None:
    for arm, (colour, line) in LOOKS.items():
        at = {x: values[arm] for x, values in points.items() if arm in values}
        label = arm if mark == "o" else None
        axes.plot(
            list(at), list(at.values()), color=colour, linestyle=line if mark == "o" else "", marker=mark, markersize=4,
            label=label,
        )  # fmt: skip


def _by_timestep(found: Mapping[str, Mapping[str, float]]) -> dict[float, Mapping[str, float]]:
    return {float(timestep): values for timestep, values in found.items()}
