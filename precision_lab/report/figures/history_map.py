"""Drift of ranges over commits: the change of log2 amax since the first gate run, with a row per site."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from precision_lab.analysis.history import SERIES, History
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.history_names import PLACE, address_of, in_groups, label_runs, main_component
from precision_lab.report.figures.style import Drawing

TITLE = "Drift of ranges over commits"
MOST_VARIANTS = 3
MOST_ROWS = 320
LABELLED_ROWS = 40  # up to this many rows, each is labelled
COLOURS = "RdBu_r"
ABSENT = "#6f6f6f"

Cells = npt.NDArray[np.float64]


class Rows(NamedTuple):
    """The rows of the map. of: the row number by (component, site, port).

    names, blocks, sections: the name, block and section of each row. each: the kind of a row. main: the title of the
    section of the main component.
    """

    of: pd.Series
    names: Sequence[str]
    blocks: Sequence[str]
    sections: Sequence[str]
    each: str
    main: str


def draw(history: History, steps: pd.DataFrame) -> Drawing:
    """Draws the map. steps: the result of `analysis.history.steps`."""
    variants = list(history.rows["variant"].unique())
    counts = steps["variant"].value_counts()
    most = sorted(variants, key=lambda name: -counts.get(name, 0))[:MOST_VARIANTS]
    shown = [name for name in variants if name in most]
    main = main_component(history)
    rows = _rows(history.rows[history.rows["variant"].isin(shown)], main)
    columns = in_groups(history.runs)
    maps = {name: _cells(history.rows[history.rows["variant"] == name], rows, columns) for name in shown}
    norm = _norm(list(maps.values()))
    environments = (history.runs["device"] + ", MLX " + history.runs["mlx"]).loc[columns].tolist()
    mixed = len(set(environments)) > 1

    height = min(max(0.024 * len(rows.names), 2.6), 6.6) if len(rows.names) > LABELLED_ROWS else 0.16 * len(rows.names)
    figure = style.new_figure(1.9 + max(height, 1.6), wspace=0.03)
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    width = style.WIDTH * 0.8 / len(shown)
    for axes, (name, cells) in zip(grid, maps.items(), strict=True):
        _draw_cells(axes, cells, norm)
        _mark_steps(axes, steps[steps["variant"] == name], rows, columns)
        _divide(axes, rows.sections)
        if mixed:
            _name_environments(axes, environments, width)
        label_runs(axes, history.runs.loc[columns], _stepped(steps, columns), width)
        axes.set_title(labels.shorten(name, 40), pad=16 if mixed else 6)
    _label_rows(grid[0], rows)
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=grid, aspect=36, pad=0.015, extend=_extend(norm, maps))
    bar.set_label("change of log2 amax since the first run, bits")
    bar.outline.set_visible(False)
    has_steps = bool(steps["variant"].isin(shown).any())
    marks: dict[str, Artist] = {}
    if has_steps:
        bar_look: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 9, "markeredgewidth": 1.6}
        marks["step"] = Line2D([], [], color="black", **bar_look)
    if any(np.isnan(cells).any() for cells in maps.values()):
        marks["no value: not finite, all zero, or no such site"] = Patch(color=ABSENT)
    if marks:
        figure.legend(marks.values(), marks.keys(), loc="outside upper left", ncols=2, borderaxespad=0.2)
    caption = _caption(rows.each, mixed, maps, bool((history.runs["verdict"] == "failed").any()), has_steps)
    if len(shown) < len(variants):
        caption += f" Of {len(variants)} variants, those with the most steps."
    return Drawing("ranges", TITLE, figure, caption)


def _caption(each: str, mixed: bool, maps: Mapping[str, Cells], failed: bool, has_steps: bool) -> str:
    """each: the kind of a row. mixed: whether runs are of several devices or versions of MLX."""
    changes = np.concatenate([cells.ravel() for cells in maps.values()])
    colours = ["red has grown"] * bool((changes > 0).any()) + ["blue has shrunk"] * bool((changes < 0).any())
    return (
        "Change of log2 amax (the largest over the cases of a gate run) since the first run"
        f"{' on the same device and version of MLX' if mixed else ''}{'; ' if colours else ''}{', '.join(colours)}. "
        f"Columns: gate runs in order of time, named by commit{', orange where the gate failed' if failed else ''}. "
        f"Rows, in order of execution: {each}."
        f"{' Black bars: a step between this run and the one before.' if has_steps else ''}"
    )


def _rows(rows: pd.DataFrame, main: str) -> Rows:
    """One row per site if there are few sites, otherwise per kind of operation in a block, otherwise per block."""
    order = rows.groupby(PLACE)["order"].min().sort_values(kind="stable")
    places = order.index.to_frame(index=False)
    places["block"], places["kind"] = zip(*(_block_and_kind(site) for site in places["site"]), strict=True)
    levels = {
        "one site each": PLACE,
        "the kinds of operation of each block (norms and modulation, attention, MLP, output), each by the site that "
        "has changed most": ["component", "block", "kind"],
        "one block each, by the site that has changed most": ["component", "block"],
    }
    numbers = {each: places.groupby(keys, sort=False).ngroup() for each, keys in levels.items()}
    each = next((each for each in numbers if numbers[each].max() < MOST_ROWS), list(numbers)[-1])
    number = numbers[each]
    firsts = places[~number.duplicated()]
    if each == "one site each":
        places_of = firsts[PLACE].itertuples(index=False, name=None)
        names = [address_of(component, site, port, main) for component, site, port in places_of]
    else:
        names = list(firsts["block"])
    of, sections = pd.Series(number.to_numpy(), order.index), _sections(firsts, main)
    return Rows(of, names, list(firsts["block"]), sections, each, _title(main, main))


def _block_and_kind(site: str) -> tuple[str, str]:
    """Block and kind of a site: `transformer_blocks.3` and `attention` for transformer_blocks.3.attn.to_q.

    A site outside any list is its own block.
    """
    segments = site.split(".")
    at = next((at for at, segment in enumerate(segments) if segment.isdecimal()), len(segments) - 1)
    inside = segments[at + 1 :]
    if not inside or "add" in inside[-1].replace("add_", ""):
        return ".".join(segments[: at + 1]), "output"
    kind = next((kind for word, kind in (("attn", "attention"), ("mlp", "mlp")) if word in inside[0]), "norm")
    return ".".join(segments[: at + 1]), kind


def _title(component: str, main: str) -> str:
    """Title of a component, such as `text encoder`; `transformer blocks` for the main one, with numbered blocks."""
    name = component.replace("_", " ")
    return f"{name} blocks".strip() if component == main else name


def _sections(places: pd.DataFrame, main: str) -> list[str]:
    """The part of the model of each row; empty for single sites outside the parts."""
    blocks = places["block"].str.contains(r"\.\d+$") | (places["component"] != main)
    return list(places["component"].map(lambda component: _title(component, main)).where(blocks, ""))


def _cells(rows: pd.DataFrame, places: Rows, columns: Sequence[int]) -> Cells:
    """The change of largest magnitude in each cell; NaN without a change, or if a site in the cell lost its value."""
    number = places.of.reindex(pd.MultiIndex.from_frame(rows[PLACE])).to_numpy()
    column = pd.Series(range(len(columns)), list(columns)).reindex(rows["run"]).to_numpy()
    first = rows.groupby(list(SERIES), sort=False)["log2_amax"].transform("first")  # the first that is not NaN
    change = (rows["log2_amax"] - first).to_numpy(float)
    by_size = np.argsort(np.abs(change), kind="stable")  # NaN at the end
    cells = np.full((len(places.names), len(columns)), np.nan)
    cells[number[by_size], column[by_size]] = change[by_size]  # the last assignment wins
    return cells


def _norm(maps: Sequence[Cells]) -> Normalize:
    """A colour scale symmetric about 0 that covers all but the largest 1 % of the changes, and at least 0.1 bits."""
    sizes = np.abs(np.concatenate([cells.ravel() for cells in maps]))
    sizes = sizes[sizes > 0]
    limit = max(float(np.quantile(sizes, 0.99)), 0.1) if sizes.size else 0.1
    return Normalize(-limit, limit)


def _extend(norm: Normalize, maps: dict[str, Cells]) -> Any:
    limit = norm.vmax or 0.0
    above = any((cells > limit).any() for cells in maps.values())
    below = any((cells < -limit).any() for cells in maps.values())
    return {(True, True): "both", (True, False): "max", (False, True): "min"}.get((above, below), "neither")


def _draw_cells(axes: Axes, change: Cells, norm: Normalize) -> None:
    absent = np.isnan(change)
    colours = np.asarray(colormaps[COLOURS](norm(np.where(absent, 0.0, change))))
    colours[absent] = to_rgba(ABSENT)
    axes.imshow(colours, aspect="auto", interpolation="none")
    axes.tick_params(axis="y", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _mark_steps(axes: Axes, steps: pd.DataFrame, places: Rows, columns: Sequence[int]) -> None:
    """Marks each step with a bar at the left edge of the cell of the first run at the new level."""
    number = places.of.reindex(pd.MultiIndex.from_frame(steps[PLACE])).to_numpy()
    column = pd.Series(range(len(columns)), list(columns)).reindex(steps["run"]).to_numpy()
    cells = sorted(set(zip(number.tolist(), column.tolist(), strict=True)))
    if cells:
        row, at = np.array(cells).T
        axes.vlines(at - 0.5, row - 0.5, row + 0.5, color="black", linewidth=1.6, zorder=3)


def _stepped(steps: pd.DataFrame, columns: Sequence[int]) -> list[int]:
    """Columns with steps, in descending order of their number of steps."""
    return [columns.index(run) for run in steps["run"].value_counts().index]


def _divide(axes: Axes, sections: Sequence[str]) -> None:
    """Draws lines between the parts of the model."""
    for row, (one, other) in enumerate(itertools.pairwise(sections)):
        if one != other:
            axes.axhline(row + 0.5, color=style.MUTED, linewidth=0.5, zorder=2)


def _name_environments(axes: Axes, names: Sequence[str], width: float) -> None:
    """Draws gaps between runs on different devices or MLX versions, with their names above where space permits."""
    for name, group in itertools.groupby(range(len(names)), key=names.__getitem__):
        own = list(group)
        if own[0]:
            axes.axvline(own[0] - 0.5, color="white", linewidth=5, zorder=4)
        room = int(width * len(own) / len(names) / 0.068)
        device, _, version = name.rpartition(", ")
        if room >= len(version):
            text = (
                f"{labels.shorten(device, room - len(version) - 3)}, {version}" if room > len(version) + 8 else version
            )
            words: dict[str, Any] = {"fontsize": 8, "color": style.MUTED, "va": "bottom"}
            axes.text(own[0] - 0.5, 1.012, text, transform=axes.get_xaxis_transform(), **words)


def _label_rows(axes: Axes, places: Rows) -> None:
    count = len(places.names)
    if count <= LABELLED_ROWS:
        axes.set_yticks(range(count), [labels.shorten(name, 34) for name in places.names], fontsize=8)
        return
    bounds = [0, *(at for at in range(1, count) if places.sections[at] != places.sections[at - 1]), count]
    ticks: dict[float, str] = {}
    for start, end in itertools.pairwise(bounds):
        section = places.sections[start]
        if section and end - start > 0.06 * count:
            left: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            look: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 9}
            axes.annotate(section, (0, (start + end - 1) / 2), (-32, 0), **left, **look)
        if section == places.main:
            ticks |= _block_ticks(places.blocks[start:end], start)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=8)


def _block_ticks(blocks: Sequence[str], start: int) -> dict[float, str]:
    """Labels of every tenth block and the last one, by the middle of their rows."""
    rows: dict[int, list[int]] = {}
    for at, block in enumerate(blocks, start):
        rows.setdefault(int(block.rpartition(".")[2]), []).append(at)
    last = max(rows)
    every = 10 if last > 15 else 5 if last > 6 else 1
    wanted = [number for number in rows if number == last or (number % every == 0 and last - number >= every / 2)]
    return {float(np.mean(rows[number])): str(number) for number in wanted}
