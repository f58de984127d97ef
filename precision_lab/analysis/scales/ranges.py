"""The largest and the typical magnitude at every place in every case, from the activations of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from precision_lab.errors import InputError
from precision_lab.record.run import Run

CASE = ["set", "prompt_id", "seed"]
"""What names a case: the set of cases (a run), the number of its prompt there, and its seed."""

PLACE = ["component", "site", "port"]
_NEEDED = ("amax", "amin_nonzero", "rms", "num_nan", "num_inf")
_MOMENT = ["branch", "step", "order"]


def ranges_of(runs: Mapping[str, Run], variants: Sequence[str] | None = None, kind: str = "out") -> pd.DataFrame:
    """One row for each variant, case and place: the extremes over steps and branches of what a module returns.

    runs: by the names of their sets of cases. variants: by default all. kind: "out", or "in" for what modules take.

    Columns: set, variant, prompt_id, seed, component, site, port, stream, block, dtype; `amax` with the `branch`,
    `step` and `order` of the array in which it arose; `rms`, the smallest of an array that is not all zero;
    `num_nonfinite`, over all arrays. amax is infinite where a value was not finite. Raises InputError for a run without
    the range catalogue.
    """
    return pd.concat([_of_run(name, run, variants, kind) for name, run in runs.items()], ignore_index=True)


def _of_run(name: str, run: Run, variants: Sequence[str] | None, kind: str) -> pd.DataFrame:
    table = run.activations
    missing = [column for column in _NEEDED if column not in table]
    if missing:
        raise InputError(
            f"{run.path}: its activations have no {', '.join(missing)}, expected a run with the probe range"
        )
    known = list(dict.fromkeys(table["variant"]))
    for variant in variants or ():
        if variant not in known:
            raise InputError(f"{run.path} has no activations of the variant {variant}, but of {', '.join(known)}")
    rows = table[(table["port"].str.partition(".")[0] == kind) & table["amax"].notna()]
    rows = rows if variants is None else rows[rows["variant"].isin(variants)]
    bad = (rows["num_nan"].fillna(0) + rows["num_inf"].fillna(0)).astype("int64")
    peak = rows["amax"].astype("float64").where(bad == 0, float("inf"))
    rows = rows.assign(set=name, amax=peak, num_nonfinite=bad, rms=rows["rms"].where(rows["rms"] > 0))
    keys = ["set", "variant", "prompt_id", "seed", *PLACE]
    grouped = rows.groupby(keys, sort=False, dropna=False)
    at = grouped["amax"].idxmax()
    found = rows.loc[at, [*keys, "stream", "block", "dtype", "amax", *_MOMENT]].set_index(keys)
    return found.join(grouped.agg(rms=("rms", "min"), num_nonfinite=("num_nonfinite", "sum"))).reset_index()


def stored_in(ranges: pd.DataFrame, variant: str, dtype: str) -> set[tuple[str, str, str]]:
    """The places (component, site, port) whose results a variant stores in `dtype`."""
    rows = ranges[(ranges["variant"] == variant) & (ranges["dtype"] == dtype)]
    return set(rows[PLACE].itertuples(index=False, name=None))


def at_places(ranges: pd.DataFrame, places: set[tuple[str, str, str]]) -> pd.DataFrame:
    """The rows at the given places."""
    return ranges[pd.MultiIndex.from_frame(ranges[PLACE]).isin(places)]


def without_containers(ranges: pd.DataFrame) -> pd.DataFrame:
    """The rows of modules inside which no other was recorded; the output of a container is that of its last module."""
    sites = set(ranges[["component", "site"]].itertuples(index=False, name=None))
    holders = {(component, holder) for component, site in sites for holder in _holders(site)}
    return ranges[~pd.MultiIndex.from_frame(ranges[["component", "site"]]).isin(holders & sites)]


def _holders(site: str) -> list[str]:
    segments = site.split(".")
    return [".".join(segments[:length]) for length in range(1, len(segments))]
