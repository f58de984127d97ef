"""Near misses: values that are still finite, and within a few bits of the overflow of their dtype.

In the manner of FPChecker's latent infinities: a value within a bit or two of the largest number of its format is one
prompt, seed or step away from an infinity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from precision_lab.errors import InputError
from precision_lab.numerics.formats import FORMATS

NEAR_BITS = 1.0
_SITE = ("variant", "component", "site", "port")
_MOMENT = ("dtype", "amax", "prompt_id", "seed", "branch", "step")
_COUNTS = ("num_nan", "num_inf")
COLUMNS: Sequence[str] = (*_SITE, "near", "seen", *_MOMENT, "bits")


def near_misses(activations: pd.DataFrame, within: float = NEAR_BITS) -> pd.DataFrame:
    """The sites of each variant where finite values came within `within` bits of overflow, the nearest first.

    activations: the table of a run, with the columns of the range catalogue. Headroom is that in the array's own dtype,
    log2(max / amax): with fp32 streams in a float16 variant, the streams are measured against float32. Arrays that hold
    an infinity or NaN are past it and do not count.

    Columns: variant, component, site, port; `near`, in how many of the `seen` arrays it came so near; and of the
    nearest of them dtype, amax, prompt_id, seed, branch, step and `bits`, its headroom. Empty where there are none, or
    where no ranges were recorded. Raises InputError for `within` not above 0.
    """
    if not within > 0:
        raise InputError(f"near misses within {within} bits of overflow: expected a number above 0")
    if not {"amax", *_COUNTS} <= set(activations):
        return pd.DataFrame(columns=list(COLUMNS))
    largest = {name: fmt.max for name, fmt in FORMATS.items()}
    codes, names = pd.factorize(activations["dtype"])  # one look-up a name; the code of an array without one is -1
    limits = np.array([*(largest.get(name, np.nan) for name in names), np.nan], float)[codes]
    amax, num_nan, num_inf = (activations[name].to_numpy(float, na_value=np.nan) for name in ("amax", *_COUNTS))
    finite = (num_nan == 0) & (num_inf == 0) & (amax > 0) & ~np.isnan(limits)
    bits = np.full(len(activations), np.inf)
    bits[finite] = np.log2(limits[finite]) - np.log2(amax[finite])
    is_near = bits < within
    if not is_near.any():  # as for most variants
        return pd.DataFrame(columns=list(COLUMNS))
    seen = activations.loc[finite, list(_SITE)].groupby(list(_SITE)).size().rename("seen")
    rows = activations.loc[is_near, [*_SITE, *_MOMENT]].assign(bits=bits[is_near])
    near = rows.groupby(list(_SITE)).size().rename("near")
    nearest = rows.sort_values("bits", kind="stable").drop_duplicates(list(_SITE))
    found = nearest.join(near, on=list(_SITE)).join(seen, on=list(_SITE))
    return found[list(COLUMNS)].reset_index(drop=True)
