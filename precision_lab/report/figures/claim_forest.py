"""The claims of a run, one per row: the effect, its interval, and the range that counts as no effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from precision_lab.analysis.claims import Claim
from precision_lab.analysis.measures import METRICS
from precision_lab.record.layout import Layout
from precision_lab.record.summary import ClaimEntry
from precision_lab.report import headline
from precision_lab.report.figures import forest, labels, style
from precision_lab.report.figures.style import Drawing
from precision_lab.report.view import View
from precision_lab.report.wording import interval, number

TITLE = "The claims at a glance"
CAPTION = (
    "One row per claim: the ratio of its subject's measurement to the comparison's, log scale{interval}. Shaded: "
    "ratios that count as equal, the noise floor or the margin of the claim, whichever is larger.{rule}"
)
INTERVAL = {
    "interval": ", with its 95 % interval over prompts (of times: over rounds)",
    "rule": " The verdict is read from where the whole interval lies; below the noise floor nothing is decided.",
}
VERDICTS = {"supported": ("#009E73", "o"), "refuted": ("#D55E00", "D"), "inconclusive": (style.MUTED, "s")}
"""A colour of Okabe and Ito and a marker for each verdict, so that verdicts can be distinguished without colour."""

RELATIONS = {"larger": ">", "smaller": "<", "equal": "=", "not_larger": "≤", "not_smaller": "≥"}
COUNTED = {"zero": "none", "nonzero": "some"}
CHARACTERS = 54  # per line of a claim's text
CLAIMED, GAP = 12.0, 16.0  # from the axes to the first column of text, and between the columns, in points


@dataclass(frozen=True)
class Row:
    """A claim in the figure: `claimed` and `found` as text; ratio to the comparison, or count, as (estimate, lo, hi)
    with NaN for missing values.

    tolerance: ratios within a factor of 1 + tolerance of 1 count as equal.
    """

    text: str
    claimed: str
    found: str
    verdict: str
    ratio: tuple[float, float, float]
    tolerance: float
    counted: bool

    @property
    def tallest(self) -> str:
        """Of its texts the one with the most lines, which the height of the row follows."""
        return max((self.text, self.claimed, self.found), key=lambda text: text.count("\n"))


def draw(view: View) -> Drawing | None:
    """Draws the figure; None for a run without judged claims. Claims on variants that were not run are in the table."""
    groups = _groups(view)
    if not groups:
        return None
    heights = [sum(forest.height(row.tallest) for row in rows) for rows in groups.values()]
    ratios = [title for title, rows in groups.items() if not rows[0].counted]
    figure = style.new_figure(0.6 + sum(heights) + 0.33 * len(groups) + 0.4 * (1 + (len(ratios) < len(groups))))
    grid = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    limits = forest.ratio_limits([end for title in ratios for row in groups[title] for end in row.ratio])
    second = _second_column(groups)
    for axes, (title, rows) in zip(grid, groups.items(), strict=True):
        axes.set_title(title)
        centres = forest.lay_out(axes, [row.text for row in rows], [row.tallest for row in rows])
        if title in ratios:
            forest.ratio_axis(axes, limits)
            axes.tick_params(labelbottom=title == ratios[-1])
        else:
            _count_axis(axes, [row.ratio[0] for row in rows])
        for row, y in zip(rows, centres, strict=True):
            _draw_row(axes, row, y, second)
    if ratios:
        grid[len(ratios) - 1].set_xlabel("ratio to the comparison or bound\n(1: no difference, left of it: less)")
    forest.head(grid[0], CLAIMED, "claimed")
    forest.head(grid[0], second, "found [95 % interval]" if _spans(groups) else "found")
    _legend(figure)
    return Drawing("claims", TITLE, figure, _caption(view, groups, limits))


def _caption(view: View, groups: Mapping[str, Sequence[Row]], limits: tuple[float, float]) -> str:
    every = [row for rows in groups.values() for row in rows]
    entries = view.run.summary.claims if view.run.summary else ()
    text = CAPTION.format(**(INTERVAL if _spans(groups) else dict.fromkeys(INTERVAL, "")))
    if any(entry.bound is not None for entry in entries if not _not_run(entry)):
        text += " Beside a bound, the column on the right has the quantity itself."
    if forest.beyond(limits, [row.ratio[0] for row in every if not row.counted]):
        text += " Triangles: beyond the axis."
    if any(row.counted for row in every):
        text += " Counts are over all arrays recorded."
    return text


def _spans(groups: Mapping[str, Sequence[Row]]) -> bool:
    """Whether a row has an interval."""
    return any(math.isfinite(row.ratio[1]) for rows in groups.values() for row in rows)


def _second_column(groups: Mapping[str, Sequence[Row]]) -> float:
    """Where the column of what was found begins, in points from the axes: beside the widest of what was claimed."""
    texts = ["claimed", *(row.claimed for rows in groups.values() for row in rows)]
    return CLAIMED + max(labels.width(text, forest.SIZE) for text in texts) + GAP


@dataclass(frozen=True)
class Judged:
    """A claim of the experiment and its verdict."""

    stated: Claim
    entry: ClaimEntry

    @property
    def counted(self) -> bool:
        return self.entry.relation in COUNTED

    @property
    def other(self) -> str:
        """The variant or value that the subject is compared with."""
        return self.entry.against or f"{number(self.entry.bound, digits=2)} {self.unit}".strip()

    @property
    def unit(self) -> str:
        """The unit of what was found; a ratio has none."""
        unit = METRICS[self.stated.metric].unit if self.stated.metric in METRICS else ""
        return unit if unit == "dB" or self.entry.bound is not None else ""

    def ratio(self, shown: float) -> float:
        """A number of the entry as a ratio to the comparison; a count stays as it is."""
        return shown if self.counted else METRICS[self.stated.metric].ratio(shown, self.entry.bound)

    @property
    def tolerance(self) -> float:
        """Ratios within a factor of 1 + this of 1 count as equal."""
        if self.counted:
            return 0.0
        relative = METRICS[self.stated.metric].relative
        return max(relative(self.entry.noise_floor.value or 0.0), relative(self.stated.margin))


def _groups(view: View) -> dict[str, list[Row]]:
    """The judged claims, grouped by their quantity and then by their comparison; counts last."""
    stated = {claim.id: claim for claim in map(Claim.from_dict, view.manifest.claims)}
    entries = view.run.summary.claims if view.run.summary else ()
    claims = [Judged(stated[entry.id], entry) for entry in entries if entry.id in stated and not _not_run(entry)]
    quantities = {claim.entry.id: _quantity(claim.stated, view.layout) for claim in claims}
    titles = list(dict.fromkeys(quantities.values()))
    others = list(dict.fromkeys(claim.other for claim in claims))
    claims.sort(key=lambda c: (c.counted, titles.index(quantities[c.entry.id]), others.index(c.other)))
    groups: dict[str, list[Row]] = {}
    for claim in claims:
        groups.setdefault(quantities[claim.entry.id], []).append(_row(claim))
    return groups


def _not_run(entry: ClaimEntry) -> bool:
    return entry.effect.value is None and entry.effect.reason.endswith("was not run")


def _quantity(claim: Claim, layout: Layout) -> str:
    """The quantity that the claim measures, as the title of its group."""
    sites = labels.shorten(", ".join(claim.sites), 44)
    if claim.metric == "drift":
        result = f"Drift of the {layout.result.title}"
        known = {"": result, layout.result.address: result, layout.picture: "Drift of the picture"}
        return known.get(sites, f"Drift at {sites}")
    own = layout.streams.get(claim.stream or "")
    stream = f" of the {own.title}" if own else ""
    titles = {
        "amax": f"Largest magnitude{stream}" + (f" at {sites}" if sites else ""),
        "base_drift": f"Drift of the {layout.result.title}, own settings included",
        "kl": f"KL divergence of the {layout.result.title}",
        "latency": "Time of a step",
        "largest_share": f"Largest share of one contribution{stream}",
        "nonfinite": "Values that are not finite",
        "psnr_db": "PSNR of the picture",
        "bits_per_weight": "Effective bits a weight",
        "weight_bytes": "Bytes of the weights",
        **{name: title for name, (title, _) in headline.PICTURES.items()},
        "ssim": "SSIM of the picture",
    }
    return titles.get(claim.metric, claim.metric.replace("_", " "))


def _row(claim: Judged) -> Row:
    entry, effect = claim.entry, claim.entry.effect.value
    found = entry.effect.reason if effect is None else f"{number(effect)} {claim.unit}".strip()
    if entry.ci95:
        found += f" {interval(entry.ci95)}"
    elif effect is not None and entry.verdict_reason:
        found += f" ({entry.verdict_reason.partition(':')[0]})"
    relation = COUNTED.get(entry.relation) or f"{RELATIONS[entry.relation]} {claim.other}"
    estimate, lo, hi = (
        math.nan if value is None else claim.ratio(float(value)) for value in (effect, *(entry.ci95 or (None, None)))
    )
    return Row(
        text=forest.wrap(entry.text, CHARACTERS),
        claimed=labels.fold(labels.shorten(relation, 48), 18),
        found=forest.wrap(found, 26, lines=2),
        verdict=entry.verdict,
        ratio=(estimate, lo, hi),
        tolerance=claim.tolerance,
        counted=claim.counted,
    )


def _count_axis(axes: Axes, counts: Sequence[float]) -> None:
    """Sets up an axis of counts: zero, then powers of ten."""
    most = max([1.0, *(count for count in counts if math.isfinite(count))])
    top = max(2, math.ceil(math.log10(most)))
    step = 1 if top <= 4 else 2
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.set_xlim(-0.5, 10.0 ** (top + 0.3))
    axes.xaxis.set_major_locator(
        FixedLocator([0.0, *(10.0**power for power in range(0 if step == 1 else 2, top + 1, step))])
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x")
    axes.set_xlabel("number of values (0 is sound)")


def _draw_row(axes: Axes, row: Row, y: float, second: float) -> None:
    colour, marker = VERDICTS.get(row.verdict, VERDICTS["inconclusive"])
    if row.tolerance and not row.counted:
        forest.draw_tolerance(axes, y, forest.height(row.tallest) - 0.03, row.tolerance)
    forest.draw_effect(axes, y, row.ratio, colour, marker)
    forest.write_beside(axes, y, CLAIMED, row.claimed)
    forest.write_beside(axes, y, second, row.found)


def _legend(figure: Figure) -> None:
    handles: list[Any] = []
    for colour, marker in VERDICTS.values():
        face = "white" if marker == "s" else colour
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=forest.MARKER, markerfacecolor=face))
    handles.append(Patch(color=forest.BAND, linewidth=0))
    names = [*VERDICTS, "counts as equal"]
    figure.legend(handles, names, loc="outside upper left", ncols=len(names), borderaxespad=0.2, handlelength=1.8)
