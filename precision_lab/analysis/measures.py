"""The metrics of claims: values of one variant by case or round of timing, from the tables of a run alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis import basin
from precision_lab.analysis.pictures import distances, measure, reference_of
from precision_lab.numerics.pictures import MEASURES, PictureMeasure
from precision_lab.record.glob import named_sites
from precision_lab.record.manifest import Storage
from precision_lab.record.run import Run

CASE = ["prompt_id", "seed"]
_COUNTS = ("num_nan", "num_inf")


def final_drift(run: Run, variant: str, sites: Sequence[str] = (), mode: str = "free") -> pd.Series:
    """Per case (prompt_id, seed), rel_l2 after the last step, free-running; the largest of several outputs.

    mode: `free`, from the reference that takes the same steps; or `base`, from that of the run's settings.
    sites: patterns of the outputs, by default the result of a step. Empty if it was not recorded, NaN for a case with a
    value that is not finite.
    """
    if "rel_l2" not in run.drift:
        return pd.Series(dtype=float)
    rows = _at_sites(run, _rows(run, variant, mode), sites or (run.layout.result.address,))
    step = rows["step"].astype("Float64").fillna(-1)  # a picture belongs to no step
    # of each case by itself: texts have different numbers of tokens
    last = step == step.groupby([rows[name] for name in (*CASE, "component", "site")]).transform("max")
    return _largest(rows[last].groupby(CASE)["rel_l2"])


def _largest(groups: Any) -> pd.Series:
    """The largest value of each group, NaN where one is missing. A function of ours for each group would take longer
    than all else of a claim."""
    largest: pd.Series = groups.max()
    return largest.where(groups.count() == groups.size())


def base_drift(run: Run, variant: str) -> pd.Series:
    """Per case, rel_l2 of the last result from that of the reference with the run's settings, free-running.

    It includes what the variant's own settings change, which `final_drift` leaves out. A variant without any has one
    reference, so that both are the same.
    """
    own = final_drift(run, variant, mode="base")
    return final_drift(run, variant) if own.empty else own


def divergence(run: Run, variant: str) -> pd.Series:
    """Per case, the mean over steps of the Kullback-Leibler divergence of the result, free-running, in nats.

    Empty where the result holds no logits or was not recorded, NaN for a case with a value that is not finite.
    """
    if not run.layout.result.distribution or "kl" not in run.drift:
        return pd.Series(dtype=float)
    rows = _at_sites(run, _rows(run, variant, "free"), (run.layout.result.address,))
    return rows.groupby(CASE)["kl"].agg(lambda steps: steps.mean(skipna=False))


def _rows(run: Run, variant: str, mode: str) -> pd.DataFrame:
    table = run.drift
    named = table.filter([*CASE, "component", "site", "step", "rel_l2", "kl"])  # fewer columns to copy
    return named[(table["variant"] == variant) & (table["mode"] == mode)]


def _at_sites(run: Run, rows: pd.DataFrame, patterns: Sequence[str]) -> pd.DataFrame:
    """Rows of the sites that a pattern names; a negative number counts from the last of those recorded."""
    places = pd.MultiIndex.from_frame(rows[["component", "site"]])
    return rows[places.isin(named_sites(patterns, places.unique(), run.layout.default))]


def amax(run: Run, variant: str, sites: Sequence[str], stream: str | None) -> pd.Series:
    """Per case, the geometric mean over sites of the largest amax over steps and branches."""
    table = run.activations
    if not {"amax", *_COUNTS} <= set(table):
        return pd.Series(dtype=float)
    named = table[[*CASE, "component", "site", "port", "stream", "amax", *_COUNTS]]  # fewer columns to copy
    rows = named[table["variant"] == variant]
    rows = _at_sites(run, rows[rows["port"].str.startswith("out")], sites)
    if stream is not None:
        rows = rows[rows["stream"] == stream]
    rows = rows.assign(amax=rows["amax"].where((rows["num_nan"] + rows["num_inf"]) == 0))
    peaks = _largest(rows.groupby([*CASE, "component", "site", "port"])["amax"])
    return np.exp(np.log(peaks).groupby(level=CASE).agg(lambda a: a.mean(skipna=False)))


def largest_share(run: Run, variant: str, stream: str | None) -> pd.Series:
    """Per case, the share of the update that gave most of the final stream, on the main branch.

    The largest of each step, the mean over steps. stream: by default the main one.
    """
    table = run.activations
    if "final_share" not in table:
        return pd.Series(dtype=float)
    rows = table[(table["variant"] == variant) & ~table["branch"].isin(run.layout.other_branches)]
    rows = rows[rows["final_share"].notna() & (rows["stream"] == (stream or run.layout.main_stream))]
    return rows.groupby([*CASE, "step"])["final_share"].max().groupby(level=CASE).mean()


def step_seconds(run: Run, variant: str) -> pd.Series:
    """Seconds of a step by round of timing."""
    rows = run.latency
    return rows[(rows["variant"] == variant) & (rows["what"] == "step")].set_index("round")["seconds"]


def nonfinite(run: Run, variant: str) -> pd.Series:
    """Values that are NaN or infinite, for each recorded array."""
    rows = run.activations[run.activations["variant"] == variant]
    if not set(_COUNTS) <= set(rows):
        return pd.Series(dtype=float)
    return (rows["num_nan"] + rows["num_inf"]).dropna().astype(float)  # rows of other probes have no counts


def psnr_db(run: Run, variant: str) -> pd.Series:
    """Per case, the PSNR of the picture against the reference's in dB.

    A picture identical to the reference's counts as one with a single value off by one, the least difference that 8
    bits can hold: its own PSNR, infinity, has no mean with others.
    """
    found = distances(run, variant, reference_of(run, variant))
    least = 10 * np.log10(255**2 * found["size"])
    return found["psnr_db"].where(found["psnr_db"] != np.inf, least)


def ssim(run: Run, variant: str) -> pd.Series:
    """Per case, the SSIM of the picture against the reference's."""
    return distances(run, variant, reference_of(run, variant))["ssim"]


def _exact(run: Run, variant: str, pick: Callable[[Storage], float]) -> pd.Series:
    """A property of the weights of the default component, the same in every case; empty if it was not recorded."""
    stored = run.manifest.variants[variant].weights.get(run.layout.default)
    if stored is None:
        return pd.Series(dtype=float)
    cases = pd.MultiIndex.from_product([range(len(run.manifest.prompts)), run.manifest.seeds], names=CASE)
    return pd.Series(float(pick(stored)), index=cases)


Measure = Callable[[Run, str, Sequence[str], str | None], pd.Series]
"""From run, variant, patterns of sites and stream: values by case or round, empty where nothing was measured."""


@dataclass(frozen=True)
class Metric:
    """A quantity that a claim can name, and what a run must record for it.

    - measure: its values. unit: theirs; a difference in dB is 20 log10 of a ratio.
    - sites, stream: whether a claim may name those.
    - columns: those of a probe that it needs. drift: whether it needs the table of drift. distribution, picture:
      whether the result must hold logits, or the subject draw a picture.
    - seeds: how many the run must have. extra: that of this package without which it is not measured, and whether that
      is installed.
    - by_round: whether a value is that of a round of timing, not of a case. exact: whether it is known without error
      and the same in all cases, so that it needs no interval.
    """

    measure: Measure
    unit: str = ""
    sites: bool = False
    stream: bool = False
    columns: tuple[str, ...] = ()
    drift: bool = False
    distribution: bool = False
    picture: bool = False
    seeds: int = 1
    extra: str = ""
    is_installed: bool = True
    by_round: bool = False
    exact: bool = False

    def linear(self, value: float) -> float:
        """A value as a positive number whose ratios count: decibels as the amplitude that they stand for."""
        return float(10 ** (value / 20)) if self.unit == "dB" else value

    def shown(self, ratio: float, bound: float | None = None) -> float:
        """A ratio of `linear` values in the unit of the metric; of one to a bound, the value itself."""
        if self.unit == "dB":
            return 20 * float(np.log10(ratio)) + (bound or 0.0)
        return ratio * (1.0 if bound is None else bound)

    def ratio(self, shown: float, bound: float | None = None) -> float:
        """The ratio that is `shown`."""
        if self.unit == "dB":
            return self.linear(shown - (bound or 0.0))
        return shown / (1.0 if bound is None else bound)

    def relative(self, tolerance: float) -> float:
        """A noise floor or margin in the unit of the metric as a relative difference; NaN stays NaN."""
        return self.linear(tolerance) - 1 if self.unit == "dB" else tolerance


def _of_pictures(name: str, about: PictureMeasure) -> Metric:
    return Metric(
        lambda run, variant, sites, stream: measure(run, variant, name),
        unit=about.unit,
        picture=True,
        extra=about.extra,
        is_installed=about.is_installed,
    )


METRICS: Mapping[str, Metric] = {
    "amax": Metric(amax, sites=True, stream=True, columns=("amax", *_COUNTS)),
    "base_drift": Metric(lambda run, variant, sites, stream: base_drift(run, variant), drift=True),
    "basin_left": Metric(
        lambda run, variant, sites, stream: basin.left_counts(run, variant), picture=True, seeds=basin.LEAST_SEEDS
    ),
    "basin_step": Metric(
        lambda run, variant, sites, stream: basin.steps(run, variant),
        picture=True,
        drift=True,
        seeds=basin.LEAST_SEEDS,
    ),
    "bits_per_weight": Metric(
        lambda run, variant, sites, stream: _exact(run, variant, lambda stored: stored.bits_per_weight),
        unit="bits",
        exact=True,
    ),
    "drift": Metric(lambda run, variant, sites, stream: final_drift(run, variant, sites), sites=True, drift=True),
    "kl": Metric(lambda run, variant, sites, stream: divergence(run, variant), unit="nats", distribution=True),
    "largest_share": Metric(
        lambda run, variant, sites, stream: largest_share(run, variant, stream), stream=True, columns=("final_share",)
    ),
    "latency": Metric(lambda run, variant, sites, stream: step_seconds(run, variant), unit="s", by_round=True),
    "nonfinite": Metric(lambda run, variant, sites, stream: nonfinite(run, variant), columns=_COUNTS),
    "psnr_db": Metric(lambda run, variant, sites, stream: psnr_db(run, variant), unit="dB", picture=True),
    "ssim": Metric(lambda run, variant, sites, stream: ssim(run, variant), picture=True),
    "weight_bytes": Metric(
        lambda run, variant, sites, stream: _exact(run, variant, lambda stored: stored.bytes), unit="bytes", exact=True
    ),
    **{name: _of_pictures(name, about) for name, about in MEASURES.items()},
}
"""By the name that a claim has for it."""
