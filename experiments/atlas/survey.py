"""What the tables of one run of the atlas say about its model: the numbers of the figure and of the page.

Everything is of the baseline and of the main branch, unless another variant is named. Ranges are the largest over
prompts, shares are means over prompts and steps, and errors are those of the first case, of which the run measures the
local error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.atlas.operations import KINDS
from precision_lab.analysis.measures import final_drift
from precision_lab.record.glob import named_sites
from precision_lab.record.run import Run
from precision_lab.report.view import block_outputs, main_branch

FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "mxfp8", "mxfp4")
SENSITIVITY = ("reordered", "modulation8", "modulation4")
PROMPT = "the prompt, once"


@dataclass(frozen=True)
class Survey:
    """The atlas of one model.

    - name, depth: of the model; levels: noise level by step.
    - growth: amax after each block by step; other: that of other streams or passes, by name.
    - headroom: least and greatest headroom in bits of the sites of each kind of operation, and the site of the least.
    - shares: of the final stream, by site, block and part ("attention", "feed-forward" or "entry").
    - errors: rel_l2 of block outputs by variant, mode, step and block, in the steps that have a local error.
    - ratios: drift of each variant of SENSITIVITY over the baseline's, by prompt.
    - facts: other numbers of the page.
    """

    name: str
    depth: int
    levels: Mapping[int, float]
    growth: Mapping[int, pd.Series]
    other: Mapping[str, pd.Series]
    headroom: pd.DataFrame
    shares: pd.DataFrame
    errors: pd.DataFrame
    ratios: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> Survey:
        """Raises InputError for a run that is not complete, or that is of another experiment."""
        run = run.completed().whole()
        layout = run.layout
        rows = run.activations[run.activations["variant"] == run.manifest.baseline]
        rows = main_branch(rows, layout)
        main = str(layout.main_stream)
        levels = rows.dropna(subset=["step", "sigma"]).groupby("step")["sigma"].first().to_dict()
        growth = {
            int(step): own.groupby("block")["amax"].max()
            for step, own in block_outputs(rows, layout, main).groupby("step")
        }
        shares, ratios = _shares(run, rows), _ratios(run)
        headroom = _headroom(rows)
        facts = {
            "growth": _growth_facts(growth),
            "massive": _massive(block_outputs(rows, layout, main)),
            "shares": _share_facts(shares),
            "absorption": _absorption(run, rows),
            "formats": _formats(run),
            "prefix": _prefix(rows, run),
            "errors": {},
        }
        errors = _errors(run, main)
        facts["errors"] = _error_facts(errors)
        return cls(
            name=run.manifest.checkpoint.name,
            depth=layout.depth,
            levels={int(step): float(sigma) for step, sigma in levels.items()},
            growth=growth,
            other=_other(rows, run),
            headroom=headroom,
            shares=shares,
            errors=errors,
            ratios=ratios,
            facts=facts,
        )

    def numbers(self) -> dict[str, Any]:
        """The survey as JSON; a number that is not finite is None."""
        ratios = {name: float(np.exp(np.log(values).mean())) for name, values in self.ratios.items()}
        headroom = {
            row.kind: {"least": row.least, "most": row.most, "site": row.site} for row in self.headroom.itertuples()
        }
        whole = {"depth": self.depth, **self.facts, "headroom": headroom, "drift_ratio": ratios}
        return dict(_finite(whole))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _passes_before(rows: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Block outputs of the main stream in passes that belong to no step, such as that of the prompt in 2.1."""
    layout = run.layout
    own = rows[(rows["component"] == layout.default) & rows["step"].isna() & (rows["stream"] == layout.main_stream)]
    return own[own["site"].map(lambda site: layout.is_block(layout.default, site)).astype(bool)]


def _other(rows: pd.DataFrame, run: Run) -> dict[str, pd.Series]:
    layout = run.layout
    found = {
        layout.streams[name].title: block_outputs(rows, layout, name).groupby("block")["amax"].max()
        for name in list(layout.streams)[1:]
    }
    before = _passes_before(rows, run)
    return found if before.empty else {**found, PROMPT: before.groupby("block")["amax"].max()}


def _headroom(rows: pd.DataFrame) -> pd.DataFrame:
    """By kind of operation, from rows at outputs; a value that is not finite has no headroom to measure."""
    own = rows[rows["port"].str.startswith("out") & rows["headroom_bits_float16"].notna()]
    sites = own.groupby(["component", "site", "stream"], as_index=False)["headroom_bits_float16"].min()
    found = []
    for kind, component, pattern, streamed in KINDS:
        named = sites["site"].map(lambda site, pattern=pattern: bool(re.fullmatch(pattern, site)))
        chosen = sites[named & (sites["component"] == component)]
        if streamed:
            chosen = chosen[chosen["stream"] != "-"]
        if not chosen.empty:
            worst = chosen.loc[chosen["headroom_bits_float16"].idxmin()]
            most = chosen["headroom_bits_float16"].max()
            found.append((kind, float(worst["headroom_bits_float16"]), float(most), worst["site"]))
    return pd.DataFrame(found, columns=["kind", "least", "most", "site"])


def _shares(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    layout = run.layout
    own = rows[rows["final_share"].notna() & (rows["stream"] == layout.main_stream) & rows["step"].notna()]
    shares = own.groupby(["site", "block"], dropna=False, as_index=False)["final_share"].mean()
    shares["part"] = "entry"
    for part, pattern in layout.adds.items():
        places = [(layout.default, site) for site in shares["site"]]
        named = {site for _, site in named_sites([pattern], places, layout.default)}
        shares.loc[shares["site"].isin(named), "part"] = part
    return shares.rename(columns={"final_share": "share"})


def _errors(run: Run, stream: str) -> pd.DataFrame:
    """In the cases and steps that have a local error; that of an output with non-finite values is NaN."""
    rows = block_outputs(main_branch(run.drift, run.layout), run.layout, stream)
    keys = ["prompt_id", "seed", "step"]
    measured = rows.loc[rows["mode"] == "teacher", keys].drop_duplicates()
    rows = rows.merge(measured, on=keys)
    rows["rel_l2"] = rows["rel_l2"].where(rows["num_nonfinite"] == 0)
    return rows[["variant", "mode", "step", "block", "rel_l2"]].sort_values(["variant", "mode", "step", "block"])


def _ratios(run: Run) -> dict[str, np.ndarray]:
    """Drift of the last latents over the baseline's, by prompt, the mean over seeds."""
    base = final_drift(run, run.manifest.baseline)
    return {
        name: np.exp(np.log(final_drift(run, name) / base).groupby("prompt_id").mean()).to_numpy()
        for name in SENSITIVITY
    }


def _growth_facts(growth: Mapping[int, pd.Series]) -> dict[str, Any]:
    whole = pd.DataFrame(dict(growth))
    return {
        "first": whole.iloc[0].max(),
        "last": whole.iloc[-1].max(),
        "peak": whole.to_numpy().max(),
        "peak_block": int(whole.max(axis=1).idxmax()),
        "factor": whole.iloc[-1].max() / whole.iloc[0].max(),
        "last_at_first_step": whole.iloc[-1, 0],
        "last_at_last_step": whole.iloc[-1, -1],
    }


def _massive(blocks: pd.DataFrame) -> dict[str, Any]:
    """Of the outputs of the last block, over prompts and steps; top_channels: how many channels are ever largest."""
    last = blocks[blocks["block"] == blocks["block"].max()]
    return {
        "channels": float(last["massive_channels"].median()),
        "top_ratio": float(last["top_ratio"].median()),
        "top_token_pct": float(last["top_token_pct"].median()),
        "top_channels": int(last["top_channel"].nunique()),
    }


def _share_facts(shares: pd.DataFrame) -> dict[str, Any]:
    adds = shares[shares["part"] != "entry"]
    largest = adds.loc[adds["share"].idxmax()]
    by_block = adds.groupby("block")["share"].sum()
    last = int(by_block.index.max())
    return {
        "largest": largest["share"],
        "largest_block": int(largest["block"]),
        "largest_part": largest["part"],
        "entry": shares.loc[shares["part"] == "entry", "share"].sum(),
        **{part.replace("-", "_"): own["share"].sum() for part, own in adds.groupby("part")},
        "last_tenth": by_block[by_block.index > last - round((last + 1) / 10)].sum(),
    }


def _absorption(run: Run, rows: pd.DataFrame) -> dict[str, Any]:
    own = rows[(rows["stream"] == run.layout.main_stream) & rows["step"].notna()]
    percent = own.groupby("site")["absorption_pct_bfloat16"].mean().dropna()
    return {"median_pct": percent.median(), "worst_pct": percent.max(), "worst_site": percent.idxmax()}


def _formats(run: Run) -> dict[str, Any]:
    """What storing the fp32 reference's main stream after each block would lose: sqnr and percent of overflow."""
    rows = main_branch(run.activations[run.activations["variant"] == run.reference], run.layout)
    own = block_outputs(rows, run.layout, str(run.layout.main_stream))
    return {
        name: {
            "sqnr_db": own[f"sqnr_db_{name}"].median(),
            "least_sqnr_db": own[f"sqnr_db_{name}"].min(),
            "overflow_pct": own[f"overflow_pct_{name}"].max(),
        }
        for name in FORMATS
        if f"sqnr_db_{name}" in own
    }


def _prefix(rows: pd.DataFrame, run: Run) -> dict[str, Any]:
    """How often each block computed a pass of its own for the prompt, over all steps of a case."""
    before = _passes_before(rows, run)
    cases = rows[["prompt_id", "seed"]].drop_duplicates()
    passes = len(before) / len(cases) / run.layout.depth
    return {"passes": passes, "steps": int(rows["step"].nunique()), "amax": before["amax"].max()}


def _error_facts(errors: pd.DataFrame) -> dict[str, Any]:
    """Local and accumulated error at the first step: the median over blocks, and that of the last block."""
    first = errors[errors["step"] == errors["step"].min()]
    return {
        variant: {
            mode: {"median": by_block.median(), "last": by_block.iloc[-1]}
            for mode, by_block in ((m, rows.set_index("block")["rel_l2"]) for m, rows in own.groupby("mode"))
        }
        for variant, own in first.groupby("variant")
    }
