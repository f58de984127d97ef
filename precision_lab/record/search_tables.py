"""The tables that a search leaves, and their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from precision_lab.record.columns import CASE, Column, count

_FROM = (
    Column(
        "strategy", "string", "", "what asked for it: plain, uniform, knapsack, greedy, exchange, optuna or included"
    ),
    Column("budget", "string", "", "budget that it is for; - for none"),
)
_TRIAL = Column("trial", "string", "", "name of the variant in trials/: a hash of dtype and techniques")
_MEASURED = (
    *CASE,
    Column("rel_l2", "float64", "", "relative L2 drift of the last result; null if a value is not finite"),
    Column("largest_rel_l2", "float64", "", "the largest of the results of all steps"),
    Column(
        "psnr_db", "float64", "dB", "of the picture against the reference's, infinite for the same; higher is better"
    ),
    Column("ssim", "float64", "", "of the picture against the reference's, higher is better"),
    count("num_nonfinite", "values that are NaN or infinite, in the results of all steps and in the picture"),
    Column("bytes", "Int64", "bytes", "of the linear weights with their scales, of the components that are searched"),
    Column("bits_per_weight", "float64", "bits", "of these"),
    Column(
        "predicted", "float64", "", "predicted relative L2 error of the model's output; null where nothing predicts it"
    ),
    Column("error", "string", "", "what the trial raised; null if nothing"),
)

OF_A_SEARCH: Mapping[str, Sequence[Column]] = {
    "search_trials": (
        *_FROM,
        count("number", "of the trial, from 1, for this strategy and budget"),
        _TRIAL,
        *_MEASURED,
    ),
    "search_recipes": (
        Column("recipe", "string", "", "name of the recipe"),
        *_FROM,
        _TRIAL,
        Column("held_out", "boolean", "", "whether the search has not seen the case"),
        *_MEASURED,
    ),
    "search_choices": (
        Column("recipe", "string", "", "name of the recipe"),
        Column("group", "string", "", "sites altered together; of one site, its address"),
        Column("operation", "string", "", "path of the sites inside their block; null if they differ"),
        Column("block", "Int64", "", "index of their block; null outside of blocks, or in several"),
        Column("candidate", "string", "", "what the recipe has there"),
    ),
}
"""The tables by name."""

TRIALS, RECIPES, CHOICES = OF_A_SEARCH
