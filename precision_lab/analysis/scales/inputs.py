"""A static scale for the inputs of each linear in a narrow format: a power of two, from recorded ranges.

Inputs x are rounded as round(x / scale) * scale, and what is beyond the largest number of the format times the scale
saturates. A larger scale moves small inputs towards the subnormal numbers, so the smallest one that fits is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from precision_lab.analysis.scales.choice import Goal, check_finite
from precision_lab.analysis.scales.heldout import MARGINS, failures
from precision_lab.analysis.scales.ranges import CASE, PLACE
from precision_lab.numerics.scales import headroom_bits, overflows, smallest_scale

_MOMENT = ["branch", "step", "order"]


def chosen_inputs(ranges: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """The smallest power of two `scale` by place with which every input is at most fmt.max * scale * 2^-margin_bits.

    ranges: of inputs, as `ranges_of` returns them. One row a place, in their order: component, site, port, block; the
    case and moment that decided, `amax` there; `headroom_bits` with the scale; and `normal_bits`: log2 of the smallest
    rms of an array, scaled, over the smallest normal number; if negative, typical inputs are subnormal. Inputs that are
    always zero have the scale 1. Raises InputError for ranges that are not finite.
    """
    check_finite(ranges)
    grouped = ranges.groupby(PLACE, sort=False)
    rows = ranges.loc[grouped["amax"].idxmax(), [*PLACE, "block", "variant", *CASE, *_MOMENT, "amax"]]
    rows = rows.merge(grouped["rms"].min().reset_index(), on=PLACE)
    scale = smallest_scale(rows["amax"], goal.fmt, goal.margin_bits, least=0.0)
    with np.errstate(divide="ignore"):
        normal = np.log2(rows["rms"].to_numpy(float) / scale / goal.fmt.smallest_normal)
    rows = rows.assign(scale=scale, headroom_bits=headroom_bits(rows["amax"] / scale, goal.fmt), normal_bits=normal)
    return rows.drop(columns="rms").reset_index(drop=True)


def on_cases(ranges: pd.DataFrame, inputs: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """`ranges` of inputs in other cases with their `scale`, `headroom_bits`, and whether they saturate: `overflows`.

    Raises ValueError for a place without a scale.
    """
    rows = ranges.merge(inputs[[*PLACE, "scale"]], on=PLACE, how="left", validate="many_to_one")
    if rows["scale"].isna().any():
        raise ValueError(f"{rows.loc[rows['scale'].isna(), 'site'].iloc[0]} has no scale")
    amax = rows["amax"].to_numpy() / rows["scale"].to_numpy()
    return rows.assign(headroom_bits=headroom_bits(amax, goal.fmt), overflows=overflows(amax, goal.fmt))


def by_margin(
    coverage: pd.DataFrame, heldout: pd.DataFrame, goal: Goal, margins: Sequence[float] = MARGINS
) -> pd.DataFrame:
    """How scales from `coverage` do in the cases of `heldout` with other margins, by arithmetic.

    Columns: margin_bits; `cases`, of how many; `failed`, in how many an input saturates; `places`, at how many sites;
    and the place, case and moment of the least headroom, `headroom_bits`.
    """
    found = []
    for margin in margins:
        other = Goal(goal.fmt, margin)
        rows = on_cases(heldout, chosen_inputs(coverage, other), other)
        worst = rows.sort_values(["headroom_bits", "order"], kind="stable").iloc[0]
        counts = {"cases": len(rows[CASE].drop_duplicates()), "failed": len(failures(rows))}
        counts["places"] = len(rows.loc[rows["overflows"], PLACE].drop_duplicates())
        about = {name: worst[name] for name in ("headroom_bits", *CASE, *PLACE, *_MOMENT)}
        found.append({"margin_bits": margin, **counts, **about})
    return pd.DataFrame(found)
