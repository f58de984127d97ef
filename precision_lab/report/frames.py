"""The results of a run as typed frames of pandas, and what their columns are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from precision_lab.record.columns import ORDER, Column, count, dtypes
from precision_lab.record.run import Run
from precision_lab.record.summary import ClaimEntry, Quantity, VariantSummary
from precision_lab.record.tables import WITHOUT_ORDER, leading

ERRORS: Sequence[Column] = (
    Column("rel_l2", "float64", "", "|x - reference| / |reference|, lower is better; NaN where a value is not finite"),
    Column("sqnr_db", "float64", "dB", "signal to error, higher is better; NaN for identical arrays"),
    Column("cosine", "float64", "", "cosine of the angle between the arrays; 1 is the same direction"),
    Column("max_abs_err", "float64", "", "largest absolute difference"),
    Column("mean_signed_rel_err", "float64", "", "mean difference over the mean magnitude of the reference"),
    count("num_nonfinite", "elements that are NaN or infinite in either array"),
)
"""The columns of `drift` after those that say where."""

SUMMARY: Sequence[Column] = (
    Column("variant", "string", "", "name of the variant; the index"),
    Column("weights", "string", "", "dtype of the stored weights"),
    Column("compute", "string", "", "dtype of the computation"),
    Column("techniques", "string", "", "names of the techniques, joined by +; empty for the plain model"),
    Column("error", "string", "", "the exception that the variant raised; null without one"),
    Column("expectation_met", "boolean", "", "whether its values are finite, or not, as stated"),
    Column("amax_final", "float64", "", "largest magnitude of the main stream after the last block"),
    Column("latent_rel_l2", "float64", "", "drift of the result from the reference, lower is better"),
    Column("psnr_db", "float64", "dB", "of the pictures, higher is better; inf for identical ones"),
    Column("ssim", "float64", "", "of the pictures, higher is better"),
    count("num_nonfinite", "recorded values that are NaN or infinite"),
    Column("step_s", "float64", "s", "median time of a step, lower is better"),
    Column("time_ratio", "float64", "", "to the baseline, lower is better"),
    Column("time_ratio_lo", "float64", "", "lower end of its 95 % interval"),
    Column("time_ratio_hi", "float64", "", "upper end of its 95 % interval"),
    Column("time_verdict", "string", "", "faster, slower, equivalent, inconclusive or baseline; null if not timed"),
    Column("peak_memory_bytes", "Int64", "bytes", "own weights and what a step allocates, lower is better"),
    Column("weight_bytes", "Int64", "bytes", "parameters of the default component with their scales"),
    Column("bits_per_weight", "float64", "bits", "effective bits of a weight of that component"),
)
"""The leading columns of `summary`; metrics and measures of pictures follow, as float64, under their own names."""

CLAIMS: Sequence[Column] = (
    Column("id", "string", "", "name of the claim; the index"),
    Column("text", "string", "", "what is claimed"),
    Column("verdict", "string", "", "supported, refuted or inconclusive"),
    Column("metric", "string", "", "what is compared"),
    Column("relation", "string", "", "how it is said to compare"),
    Column("subject", "string", "", "the variant that the claim is on"),
    Column("against", "string", "", "the variant that it is compared with; null beside a bound"),
    Column("bound", "float64", "", "the bound, in the unit of the metric; NaN without one"),
    Column("effect", "float64", "", "a ratio (psnr_db: dB), the quantity beside a bound, or a count"),
    Column("lo", "float64", "", "lower end of the 95 % interval of the effect; NaN without one"),
    Column("hi", "float64", "", "upper end"),
    Column("noise_floor", "float64", "", "a smaller effect is no finding"),
    Column("reason", "string", "", "why there is no verdict or no interval; empty where there are both"),
    Column("source", "string", "", "who claims it"),
)


def columns(run: Run, table: str) -> Sequence[Column]:
    """The declared columns of a frame: leading ones, those that probes declare, and the number of the observation."""
    if table in ("summary", "claims"):
        return SUMMARY if table == "summary" else CLAIMS
    last = () if table in WITHOUT_ORDER else (ORDER,)
    stated = (*leading(table), *(ERRORS if table == "drift" else ()), *run.manifest.columns.get(table, ()), *last)
    return list({column.name: column for column in reversed(stated)}.values())[::-1]


def described(declared: Sequence[Column]) -> pd.DataFrame:
    """Columns as a frame: dtype, unit and meaning by name."""
    rows = [(column.name, column.dtype, column.unit, column.meaning) for column in declared]
    return pd.DataFrame(rows, columns=["name", "dtype", "unit", "meaning"], dtype="string").set_index("name")


def typed(frame: pd.DataFrame, declared: Sequence[Column]) -> pd.DataFrame:
    """A frame whose declared columns come first, in their order and dtypes; the others stay as they are."""
    wanted = dict(dtypes(declared))
    others = [name for name in frame.columns if name not in wanted]
    known = [name for name in wanted if name in frame.columns]
    return frame[[*known, *others]].astype({name: wanted[name] for name in known})


def summary(variants: Mapping[str, VariantSummary]) -> pd.DataFrame:
    """One row for each variant, by its name, with the columns of SUMMARY."""
    rows = [{"variant": name, **_of_variant(entry)} for name, entry in variants.items()]
    frame = pd.DataFrame(rows, columns=None if rows else [column.name for column in SUMMARY])
    return typed(frame, SUMMARY).set_index("variant")


def claims(entries: Sequence[ClaimEntry]) -> pd.DataFrame:
    """One row for each claim, by its id, with the columns of CLAIMS."""
    rows = [_of_claim(entry) for entry in entries]
    frame = pd.DataFrame(rows, columns=[column.name for column in CLAIMS])
    return typed(frame, CLAIMS).set_index("id")


def _of_variant(entry: VariantSummary) -> dict[str, object]:
    timing = entry.latency
    lo, hi = (timing.ci95 if timing else None) or (math.nan, math.nan)
    identical = entry.psnr_db.reason == "identical"
    return {
        "weights": entry.dtype.weights,
        "compute": entry.dtype.compute,
        "techniques": "+".join(entry.techniques),
        "error": entry.error,
        "expectation_met": entry.expectation_met,
        "amax_final": _number(entry.amax_final),
        "latent_rel_l2": _number(entry.latent_rel_l2),
        "psnr_db": math.inf if identical else _number(entry.psnr_db),
        "ssim": _number(entry.ssim),
        "num_nonfinite": _count(entry.num_nonfinite),
        "step_s": timing.median_s if timing else math.nan,
        "time_ratio": timing.ratio if timing else math.nan,
        "time_ratio_lo": lo,
        "time_ratio_hi": hi,
        "time_verdict": timing.verdict if timing else None,
        "peak_memory_bytes": _count(entry.peak_memory_bytes),
        "weight_bytes": _count(entry.weight_bytes),
        "bits_per_weight": _number(entry.bits_per_weight),
        **{name: _number(quantity) for name, quantity in {**entry.metrics, **entry.pictures}.items()},
    }


def _of_claim(entry: ClaimEntry) -> dict[str, object]:
    lo, hi = entry.ci95 or (math.nan, math.nan)
    return {
        **{name: getattr(entry, name) for name in ("id", "text", "verdict", "metric", "relation", "subject")},
        "against": entry.against,
        "bound": math.nan if entry.bound is None else entry.bound,
        "effect": _number(entry.effect),
        "lo": lo,
        "hi": hi,
        "noise_floor": _number(entry.noise_floor),
        "reason": entry.verdict_reason or entry.ci95_reason,
        "source": entry.source,
    }


def _number(quantity: Quantity) -> float:
    return math.nan if quantity.value is None else float(quantity.value)


def _count(quantity: Quantity) -> object:
    return pd.NA if quantity.value is None else int(quantity.value)
