"""One run against another: the same variants on the same cases, from the tables of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.summary import read_manifest, summarize
from precision_lab.errors import InputError, nearest
from precision_lab.record.tables import read

_QUANTITIES = ("amax_final", "latent_rel_l2", "psnr_db", "ssim", "num_nonfinite", "peak_memory_bytes")
_KEY = ["variant", "prompt_id", "seed", "branch", "step", "component", "site", "port"]


def headline(first: Path, second: Path) -> pd.DataFrame:
    """Rows (variant, quantity, first, second) of what the summaries say of the variants both runs have.

    Latency is left out where the devices differ. Raises InputError if a folder is no run, or none is shared.
    """
    manifests = [read_manifest(run) for run in (first, second)]
    summaries: list[dict[str, Any]] = [summarize(run)["variants"] for run in (first, second)]
    shared = [name for name in summaries[0] if name in summaries[1]]
    if not shared:
        hint = nearest(next(iter(summaries[1])), summaries[0])
        raise InputError(f"{first} and {second} have no variant in common. {hint}")
    same_device = manifests[0]["environment"]["device"] == manifests[1]["environment"]["device"]
    rows = []
    for name in shared:
        values = [summary[name] for summary in summaries]
        rows += [(name, key, values[0][key], values[1][key]) for key in _QUANTITIES]
        if same_device and all(value["latency"] for value in values):
            rows.append((name, "latency_s", *(value["latency"]["median_s"] for value in values)))
    return pd.DataFrame(rows, columns=["variant", "quantity", "first", "second"])


def range_changes(first: Path, second: Path) -> pd.DataFrame:
    """log2 of amax(second) / amax(first) for every array both runs recorded, the largest change first.

    One row an address: variant, component, site, port, dtype_first, dtype_second, log2_amax (its largest magnitude
    over cases, steps and branches) and nonfinite_change.
    """
    columns = [*_KEY, "dtype", "amax", "num_nan", "num_inf"]
    frames = [read(run, "activations").reindex(columns=columns) for run in (first, second)]
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
