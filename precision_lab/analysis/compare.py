"""One run against another: the same variants, from the tables of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from precision_lab.analysis.summary import variants
from precision_lab.errors import InputError, nearest
from precision_lab.record.run import Run
from precision_lab.record.summary import Quantity, VariantSummary

_QUANTITIES = (
    *("amax_final", "latent_rel_l2", "psnr_db", "ssim", "num_nonfinite"),
    *("weight_bytes", "bits_per_weight", "peak_memory_bytes"),
)
_KEY = ["variant", "prompt_id", "seed", "branch", "step", "component", "site", "port"]


def headline(first: Run, second: Run, results: Sequence[Mapping[str, VariantSummary]] | None = None) -> pd.DataFrame:
    """Rows (variant, quantity, first, second): the summaries of the variants that both runs have.

    results: of the variants of each run, where they are known. A quantity without a number is the reason why. Latency
    is left out where the devices differ. Raises InputError if no variant is shared.
    """
    summaries = results or [variants(run) for run in (first, second)]
    shared = [name for name in summaries[0] if name in summaries[1]]
    if not shared:
        hint = nearest(next(iter(summaries[1])), summaries[0])
        raise InputError(
            f"{first.path} and {second.path} have no variant in common. {hint}\n"
            "reference=RUN:VARIANT compares the outcomes of variants with different names"
        )
    same_device = first.manifest.environment.device == second.manifest.environment.device
    rows = []
    for name in shared:
        one, other = (summary[name] for summary in summaries)
        then, now = _quantities(one), _quantities(other)
        rows += [(name, key, _said(then[key]), _said(now[key])) for key in then if key in now]
        if same_device and one.latency and other.latency:
            rows.append((name, "latency_s", one.latency.median_s, other.latency.median_s))
    return pd.DataFrame(rows, columns=["variant", "quantity", "first", "second"])


def _said(quantity: Quantity) -> float | str | None:
    return quantity.reason or None if quantity.value is None else quantity.value


def _quantities(variant: VariantSummary) -> dict[str, Quantity]:
    return {name: getattr(variant, name) for name in _QUANTITIES} | {**variant.metrics, **variant.pictures}


def range_changes(first: Run, second: Run) -> pd.DataFrame:
    """The change of amax for every array that both runs recorded of the same prompt, seed and moment.

    One row an address, of the array that changed most over cases, steps and branches: variant, component, site, port,
    dtype_first, dtype_second, log2_amax (of amax(second) / amax(first), NaN where either is undefined) and
    nonfinite_change (NaN and infinities of the second run less those of the first). Arrays that one run alone has
    non-finite values in come first, in order of execution; then the largest changes.
    """
    columns = [*_KEY, "order", "dtype", "amax", "num_nan", "num_inf"]
    frames = [run.activations.reindex(columns=columns) for run in (first, second)]
    frames[1] = _with_prompts_of(first, second, frames[1])
    both = frames[0].merge(frames[1], on=_KEY, suffixes=("_first", "_second"))
    amax, bad = {}, {}
    for side in ("first", "second"):
        bad[side] = (both[f"num_nan_{side}"].fillna(0) + both[f"num_inf_{side}"].fillna(0)).astype(int)
        amax[side] = both[f"amax_{side}"].astype(float).where(bad[side] == 0).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        both["log2_amax"] = np.log2(amax["second"] / amax["first"])
    both.loc[amax["first"] == amax["second"], "log2_amax"] = 0.0  # where both are zero too
    both["nonfinite_change"] = bad["second"] - bad["first"]
    lost = (bad["first"] > 0) != (bad["second"] > 0)
    keys = {"lost": ~lost, "order": both["order_second"].where(lost, 0), "change": -both["log2_amax"].abs()}
    both = both.assign(**keys).sort_values(list(keys), kind="stable", na_position="last")
    address = ["variant", "component", "site", "port"]
    kept = both.drop_duplicates(address)
    return kept[[*address, "dtype_first", "dtype_second", "log2_amax", "nonfinite_change"]].reset_index(drop=True)


def _with_prompts_of(first: Run, second: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the second run with the numbers that their prompts have in the first; others are left out."""
    numbers = {prompt: number for number, prompt in enumerate(first.manifest.prompts)}
    known = {own: numbers[text] for own, text in enumerate(second.manifest.prompts) if text in numbers}
    rows = rows[rows["prompt_id"].isin(list(known))]
    return rows.assign(prompt_id=rows["prompt_id"].map(known).astype("Int64"))
