"""The results of the study, as numbers and as tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from precision_lab.analysis.gate.judge import Limits

Records = Sequence[Mapping[str, Any]]


def summary(runs: Records, power: Records, limits: Limits) -> dict[str, Any]:
    """False alarms with the upper bound of their rate, use of each margin over the runs, and the power by factor."""
    alarms = [run for run in runs if run["alarms"]]
    used = {}
    for kind in runs[0]["used"]:
        uses = [run["used"][kind] for run in runs]
        shares = np.array([use["share"] if use else 0.0 for use in uses])
        quantiles = zip(("median", "q95", "largest"), np.quantile(shares, [0.5, 0.95, 1.0]), strict=True)
        used[kind] = {name: round(float(value), 3) for name, value in quantiles} | {"at": uses[int(shares.argmax())]}
    by_factor: dict[float, list[Mapping[str, Any]]] = defaultdict(list)
    for trial in power:
        by_factor[trial["factor"]].append(trial)
    return {
        "limits": asdict(limits),
        "runs": len(runs),
        "false_alarms": len(alarms),
        # the 95 % Clopper-Pearson bound for no event in n runs; None if there was one
        "rate_below": round(1 - 0.05 ** (1 / len(runs)), 4) if not alarms else None,
        "alarms": [dict(run) for run in alarms],
        "margin_used": used,
        "power": [
            {
                "factor": factor,
                "gates": len(trials),
                "held_out": sum(trial["held_out"]["caught"] for trial in trials),
                "pinned": sum(trial["pinned"]["caught"] for trial in trials),
                "pinned_named_first": sum(trial["site"] in trial["pinned"]["first"] for trial in trials),
            }
            for factor, trials in sorted(by_factor.items())
        ],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The summary as two tables."""
    bound = f" (rate below {100 * found['rate_below']:.1f} %, at 95 %)" if found["rate_below"] is not None else ""
    used = ["| margin of | median | 95 % | largest | there |", "|---|---|---|---|---|"]
    for kind, row in found["margin_used"].items():
        shares = " | ".join(f"{100 * row[name]:.0f} %" for name in ("median", "q95", "largest"))
        there = "{address}, {variant}, {metric}".format(**row["at"]) if row["at"] else "-"
        used.append(f"| {kind} | {shares} | {there} |")
    power = ["| factor | held-out runs | pinned cases | with the gate among the first three |", "|---|---|---|---|"]
    for row in found["power"]:
        shares = (f"{row[key]} of {row['gates']}" for key in ("held_out", "pinned", "pinned_named_first"))
        power.append(f"| {row['factor']:g} | " + " | ".join(shares) + " |")
    return "\n\n".join(
        [
            f"{found['false_alarms']} false alarms in {found['runs']} held-out runs{bound}.",
            "Share of its margin that a run uses, over the runs:",
            "\n".join(used),
            "One gate times a factor, caught:",
            "\n".join(power) + "\n",
        ]
    )
