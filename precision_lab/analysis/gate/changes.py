"""The changes of a baseline's new entry against the previous one, as lines of text for the reviewer."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.gate import sketches
from precision_lab.analysis.gate.entry import Entry
from precision_lab.analysis.gate.rows import ADDRESS
from precision_lab.analysis.gate.settings import differences
from precision_lab.record.address import join_address

_SHOWN = 5
_BITS = 0.01
"""Smaller moves of a band are not reported, since ranges are stored to a thousandth of a bit."""


def changes(before: Entry, after: Entry) -> list[str]:
    """Changes of settings, sites and dtypes, and the largest moves of bands, drift and pinned cases; may be empty."""
    lines = [f"{key}: {then} -> {now}" for key, now, then in differences(after.settings, before.settings)]
    component = after.component
    lines += _sites("bands", before.bands, after.bands, component)
    lines += _sites("pinned cases", before.sketches, after.sketches, component)
    lines += _dtypes(before.bands, after.bands, component)
    lines += _nonfinite(before.bands, after.bands, component)
    for metric in ("log2_amax", "log2_rms"):
        lines += _moves(before.bands, after.bands, metric, metric, component)
    for name in ("least", "largest"):
        lines += _moves(before.drift, after.drift, name, f"log2_rel_l2 {name}", component)
    return [*lines, *_pinned(before.sketches, after.sketches, component)]


def _sites(what: str, before: pd.DataFrame, after: pd.DataFrame, component: str) -> Iterator[str]:
    then, now = (dict.fromkeys(map(tuple, table[list(ADDRESS)].to_numpy())) for table in (before, after))
    for word, some in (("gone", [k for k in then if k not in now]), ("added", [k for k in now if k not in then])):
        if some:
            yield f"{what}: {len(some)} sites {word}: {_listed([_name(k, component) for k in some])}"


def _dtypes(before: pd.DataFrame, after: pd.DataFrame, component: str) -> Iterator[str]:
    both = before.merge(after, on=list(ADDRESS), suffixes=("", "_now"))
    changed = both[both["dtypes"] != both["dtypes_now"]]
    if len(changed):
        rows = changed.head(_SHOWN).to_dict("records")
        listed = [f"{_at(row, component)} {row['dtypes']} -> {row['dtypes_now']}" for row in rows]
        yield f"dtype: {len(changed)} sites: {_listed(listed, len(changed))}"


def _nonfinite(before: pd.DataFrame, after: pd.DataFrame, component: str) -> Iterator[str]:
    """Sites that are newly not finite, or finite again. Their bands may not move: ranges are those of finite arrays."""
    both = after.merge(before, on=list(ADDRESS), suffixes=("", "_then"))
    for word, bad, good in (("newly", "", "_then"), ("no longer", "_then", "")):
        rows = both[(both[f"num_nonfinite_max{bad}"] > 0) & (both[f"num_nonfinite_max{good}"] == 0)]
        if len(rows):
            named = rows.head(_SHOWN).to_dict("records")
            listed = [f"{_at(row, component)} {row[f'num_nonfinite_max{bad}']} values" for row in named]
            yield f"non-finite values: {len(rows)} sites have them {word}, the first: {_listed(listed, len(rows))}"


def _moves(before: pd.DataFrame, after: pd.DataFrame, column: str, metric: str, component: str) -> Iterator[str]:
    key = [name for name in (*ADDRESS, "mode") if name in before]
    both = before.merge(after, on=key, suffixes=("", "_now"))
    ends = [(both[f"{column}_{end}"], both[f"{column}_{end}_now"]) for end in ("min", "max")]
    both["moved"] = np.fmax(*((now - then).abs().to_numpy(float) for then, now in ends)) if len(both) else 0.0
    moved = both[both["moved"] > _BITS].sort_values("moved", ascending=False, kind="stable")
    if len(moved):
        rows = [
            f"{_at(row, component)} [{row[f'{column}_min']:.2f}, {row[f'{column}_max']:.2f}] -> "
            f"[{row[f'{column}_min_now']:.2f}, {row[f'{column}_max_now']:.2f}]"
            for row in moved.head(_SHOWN).to_dict("records")
        ]
        most = f"{moved['moved'].iloc[0]:.2f} bits"
        yield f"{metric}: {len(moved)} bands moved by up to {most}: {_listed(rows, len(moved))}"


def _pinned(before: pd.DataFrame, after: pd.DataFrame, component: str) -> Iterator[str]:
    moved = sketches.moved(before, after)
    moved = moved[~(moved["rel_l2"] <= min(sketches.TOLERANCES.values()))]
    if len(moved):
        rows = [f"{_at(row, component)} by {row['rel_l2']:.2g}" for row in moved.head(_SHOWN).to_dict("records")]
        yield f"pinned cases: {len(moved)} sites moved, in order of execution: {_listed(rows, len(moved))}"


def _at(row: Mapping[Hashable, Any], component: str) -> str:
    return _name([row[name] for name in ADDRESS], component)


def _name(address: Sequence[str], default: str) -> str:
    variant, component, site, port = address
    return f"{variant} {join_address(component, site, port, default)}"


def _listed(some: list[str], count: int | None = None) -> str:
    count = len(some) if count is None else count
    return ", ".join(some[:_SHOWN]) + (f", and {count - _SHOWN} more" if count > _SHOWN else "")
