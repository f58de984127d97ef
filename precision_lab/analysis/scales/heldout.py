"""Scales on cases that they were not chosen from: what would have overflowed, where, and by how much.

By arithmetic, from the ranges of the plain model in fp32, for any scales and any margin; and as measured, from the
ranges of a run that used them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from precision_lab.analysis.scales.choice import Choice, Goal, Parameter, choose, divisors
from precision_lab.analysis.scales.ranges import CASE, PLACE, without_containers
from precision_lab.numerics.formats import Format
from precision_lab.numerics.scales import Division, headroom_bits, overflows
from precision_lab.record.glob import named_sites
from precision_lab.record.layout import Layout

MARGINS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Margins in bits for which `by_margin` chooses scales again."""


def predicted(
    ranges: pd.DataFrame, divisions: Sequence[Division], widened: Sequence[str], fmt: Format, layout: Layout
) -> pd.DataFrame:
    """`ranges` with `divisor`, `headroom_bits` and `overflows` with these divisions, by arithmetic.

    Places that `widened` patterns name are left out, and so are containers of what was recorded inside.
    """
    rows = without_containers(ranges)
    named = named_sites(widened, _sites(rows).unique(), layout.default) if widened else []
    rows = rows[~_sites(rows).isin(named)]
    product = divisors(rows, divisions, layout)
    amax = rows["amax"].to_numpy() / product
    return rows.assign(divisor=product, headroom_bits=headroom_bits(amax, fmt), overflows=overflows(amax, fmt))


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """Of `predicted`, the place with the least headroom of every case in which something overflows, the worst first.

    `places` is the number of places that overflow in the case.
    """
    bad = rows[rows["overflows"]].sort_values(["headroom_bits", "order"], kind="stable")
    count = bad.groupby(CASE).size().rename("places").reset_index()
    return bad.drop_duplicates(CASE).merge(count, on=CASE, how="left").reset_index(drop=True)


def measured(expected: pd.DataFrame, ranges: pd.DataFrame, fmt: Format) -> pd.DataFrame:
    """Of `predicted`, the rows of places that a variant stores in the format, with its `measured_bits` of headroom.

    ranges: those of the variant alone, in the same cases. A place whose result the variant keeps in fp32 has no
    headroom there, and is left out. NaN where a value was not finite.
    """
    keys = [*CASE, *PLACE]
    own = ranges.loc[ranges["dtype"] == fmt.name, [*keys, "amax"]]
    found = expected.merge(own, on=keys, suffixes=("", "_measured"))
    bits = headroom_bits(found["amax_measured"], fmt)
    return found.assign(measured_bits=np.where(np.isfinite(found["amax_measured"]), bits, np.nan))


def by_margin(
    coverage: pd.DataFrame,
    heldout: pd.DataFrame,
    parameters: Sequence[Parameter],
    fmt: Format,
    layout: Layout,
    margins: Iterable[float] = MARGINS,
) -> pd.DataFrame:
    """How scales from `coverage` do in the cases of `heldout`, by margin: by arithmetic on what the scales divide.

    Columns: margin_bits; `cases`, of how many; `failed`, in how many something overflows; of the least headroom
    `headroom_bits`, component, site, block, set, prompt_id, seed, step and branch; and `largest`, the largest scale.
    """
    rows = []
    for margin in margins:
        choice = choose(coverage, parameters, Goal(fmt, margin), layout)
        scaled = predicted(_at_parameters(heldout, choice, layout), choice.divisions, (), fmt, layout)
        worst = scaled.sort_values(["headroom_bits", "order"], kind="stable").iloc[0]
        place = {name: worst[name] for name in ("headroom_bits", *CASE, *PLACE, "block", "branch", "step")}
        counts = {"cases": len(scaled[CASE].drop_duplicates()), "failed": len(failures(scaled))}
        rows.append({"margin_bits": margin, **counts, "largest": choice.scales["scale"].max(), **place})
    return pd.DataFrame(rows)


def _at_parameters(ranges: pd.DataFrame, choice: Choice, layout: Layout) -> pd.DataFrame:
    """The rows of places that a parameter divides."""
    patterns = [pattern for parameter in choice.parameters for pattern in parameter.places]
    return ranges[_sites(ranges).isin(named_sites(patterns, _sites(ranges).unique(), layout.default))]


def _sites(rows: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(rows[["component", "site"]])
