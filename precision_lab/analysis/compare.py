"""One run against another: the same variants on the same cases, from the tables of both."""

from __future__ import annotations

import numpy as np
import pandas as pd

from precision_lab.analysis.summary import summarize
from precision_lab.errors import InputError, nearest
from precision_lab.record.run import Run
from precision_lab.record.summary import Quantity, VariantSummary

_QUANTITIES = ("amax_final", "latent_rel_l2", "psnr_db", "ssim", "num_nonfinite", "peak_memory_bytes")
_KEY = ["variant", "prompt_id", "seed", "branch", "step", "component", "site", "port"]


def headline(first: Run, second: Run) -> pd.DataFrame:
    """Rows (variant, quantity, first, second): the summaries of the variants that both runs have.

    Latency is left out where the devices differ. Raises InputError if no variant is shared.
    """
    summaries = [summarize(run).variants for run in (first, second)]
    shared = [name for name in summaries[0] if name in summaries[1]]
    if not shared:
        hint = nearest(next(iter(summaries[1])), summaries[0])
        raise InputError(f"{first.path} and {second.path} have no variant in common. {hint}")
    same_device = first.manifest.environment.device == second.manifest.environment.device
    rows = []
    for name in shared:
        one, other = (summary[name] for summary in summaries)
        then, now = _quantities(one), _quantities(other)
        rows += [(name, key, then[key].value, now[key].value) for key in then if key in now]
        if same_device and one.latency and other.latency:
            rows.append((name, "latency_s", one.latency.median_s, other.latency.median_s))
    return pd.DataFrame(rows, columns=["variant", "quantity", "first", "second"])


def _quantities(variant: VariantSummary) -> dict[str, Quantity]:
    return {name: getattr(variant, name) for name in _QUANTITIES} | dict(variant.metrics)


def range_changes(first: Run, second: Run) -> pd.DataFrame:
    """log2 of amax(second) / amax(first) for every array that both runs recorded, the largest change first.

    One row an address: variant, component, site, port, dtype_first, dtype_second, log2_amax (of the array that changed
    most, over cases, steps and branches) and nonfinite_change.
    """
    columns = [*_KEY, "dtype", "amax", "num_nan", "num_inf"]
    frames = [run.activations.reindex(columns=columns) for run in (first, second)]
    both = frames[0].merge(frames[1], on=_KEY, suffixes=("_first", "_second"))
    with np.errstate(divide="ignore", invalid="ignore"):
        both["log2_amax"] = np.log2(both["amax_second"].to_numpy(float) / both["amax_first"].to_numpy(float))
    both["nonfinite_change"] = (
        both["num_nan_second"] + both["num_inf_second"] - both["num_nan_first"] - both["num_inf_first"]
    )
    both = both.sort_values("log2_amax", key=np.abs, ascending=False, kind="stable")
    address = ["variant", "component", "site", "port"]
    kept = both.drop_duplicates(address)
    return kept[[*address, "dtype_first", "dtype_second", "log2_amax", "nonfinite_change"]].reset_index(drop=True)
