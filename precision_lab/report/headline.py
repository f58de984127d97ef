"""The table of variants at the head of a page: what was measured of each, in the columns that the subject has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from precision_lab.record.layout import Layout
from precision_lab.record.manifest import Coverage, Manifest, Storage
from precision_lab.record.summary import FirstNonfinite, Quantity, VariantSummary
from precision_lab.report import wording
from precision_lab.report.figures import style
from precision_lab.report.view import View

METRICS = {
    "kl": ("KL divergence", "nats, mean over steps; lower is better"),
    "base_rel_l2": ("rel. L2 to the run's settings", "of the last result; lower is nearer"),
    "base_psnr_db": ("PSNR to the run's settings", "dB; higher is nearer"),
    "base_ssim": ("SSIM to the run's settings", "higher is nearer"),
}
"""Titles of the metrics that the laboratory itself takes; others go by their name."""

PICTURES = {
    "displacement": ("displacement", "pixels"),
    "flat_grain": ("grain of plain areas", "σ in levels of 255"),
    "flat_white_drift": ("colour shift of plain areas", "levels of 255"),
    "flip": ("FLIP", "0 to 1, mean over pixels"),
    "grid_8": ("grid of 8 pixels", "energy beside neighbouring frequencies; 1 is none"),
    "grid_16": ("grid of 16 pixels", "as before"),
    "grid_32": ("grid of 32 pixels", "as before"),
    "lpips": ("LPIPS", "AlexNet"),
    "basin_left": ("left the basin", "share of generations"),
    "basin_step": ("left at step", "from 1, median; later is better"),
}
"""Titles and units of the measures of pictures. Lower is better but for the last."""

REASONS = {"nonfinite": "not finite"}
"""Words of the page for reasons that tables state as one word."""

_NOTHING = Quantity(None)


@dataclass(frozen=True)
class Column:
    """The head of a column of quantities."""

    title: str
    note: str


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, and the reason where there is none."""

    text: str
    reason: str


@dataclass(frozen=True)
class Row:
    """A variant: its name and colour in the figures, its entry in the summary, and what its process was."""

    name: str
    colour: str | None
    computed_in: str
    weights: str
    stored: Storage | None
    entry: VariantSummary
    cells: tuple[Cell, ...]
    """The quantities, in the order of the columns."""

    first_nonfinite: str
    switches: Mapping[str, str | None]
    coverage: Mapping[str, Coverage]
    settings: Mapping[str, Any]


def columns(view: View) -> list[Column]:
    """The columns of quantities: the magnitude of the main stream, drift, distances of pictures, metrics."""
    return [column for column, _ in _quantities(view)]


def rows(view: View) -> list[Row]:
    """One row for each variant, in the order of `view.variants`."""
    looks = style.looks(view.by_colour, view.reference)
    return [_row(view, name, looks[name].colour if name in view.shown else None) for name in view.variants]


def pictures(view: View) -> tuple[list[Column], list[tuple[str, list[Cell]]]]:
    """The measures of pictures: their columns, and by variant their cells.

    A measure that no picture has is left out; there are no rows where none has any.
    """
    entries = {name: view.entry(name).pictures for name in view.variants}
    names = [
        name
        for name in PICTURES
        if any(measures.get(name, _NOTHING).value is not None for measures in entries.values())
    ]
    rows = [(name, [_cell(measures.get(n, _NOTHING)) for n in names]) for name, measures in entries.items() if measures]
    rows = rows if names else []
    return [Column(*PICTURES[name]) for name in names], rows


def _row(view: View, name: str, colour: str | None) -> Row:
    entry, stated = view.entry(name), view.manifest.variants.get(name)
    computed_in, weights = wording.dtype(entry.dtype)
    return Row(
        name=name,
        colour=colour,
        computed_in=computed_in,
        weights=weights,
        stored=stated.stored(view.layout.default) if stated else None,
        entry=entry,
        cells=tuple(cell(entry) for _, cell in _quantities(view)),
        first_nonfinite=_place(entry.first_nonfinite, view.layout) if entry.first_nonfinite else "",
        switches=stated.switches if stated else {},
        coverage=view.manifest.sites.get(name, {}),
        settings=stated.settings if stated else {},
    )


def _quantities(view: View) -> Iterator[tuple[Column, Callable[[VariantSummary], Cell]]]:
    """Each column of quantities, and how its cell follows from the entry of a variant."""
    layout = view.layout
    if layout.main_stream and layout.blocks:
        yield Column("final amax", layout.streams[layout.main_stream].title), lambda entry: _cell(entry.amax_final)
    yield (
        Column("final rel. L2", f"{layout.result.title}, lower is better"),
        lambda entry: _cell(entry.latent_rel_l2),
    )
    if layout.picture:
        yield Column("PSNR in dB", "higher is better"), lambda entry: _cell(entry.psnr_db)
        yield (
            Column("SSIM", "higher is better"),
            lambda entry: Cell(wording.fixed(entry.ssim.value, 4), REASONS.get(entry.ssim.reason, entry.ssim.reason)),
        )
    for name in dict.fromkeys(name for variant in view.variants for name in view.entry(variant).metrics):
        title, note = METRICS.get(name, (name.replace("_", " "), _unit(view.manifest, name)))
        yield Column(title, note), lambda entry, name=name: _cell(entry.metrics.get(name, _NOTHING))  # type: ignore[misc]


def _cell(quantity: Quantity) -> Cell:
    return Cell(wording.number(quantity.value), REASONS.get(quantity.reason, quantity.reason))


def _place(first: FirstNonfinite, layout: Layout) -> str:
    at = first.component, first.site, first.port
    return wording.place(layout, *at, first.step, first.branch, first.prompt_id, first.seed)


def _unit(manifest: Manifest, name: str) -> str:
    """The unit of a column that a probe declares; empty where none does."""
    return next((c.unit for declared in manifest.columns.values() for c in declared if c.name == name), "")
