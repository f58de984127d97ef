"""The last lines of a run: a table of variants and the verdicts on claims."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from precision_lab.report.wording import stream_scale

_WEIGHTS = {
    "synthetic": "synthetic weights: made, not trained",
    "trained": "trained micro weights, not the published ones",
    "published": "published weights",
}


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Prints the variants of a summary, then its claims."""
    weights = (_WEIGHTS.get(summary["weights"], summary["weights"]), stream_scale(summary["inflate"]))
    title = f"{summary['experiment']} ({', '.join(filter(None, weights))})"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("variant", "dtype", "amax", "latents rel_l2", "psnr dB", "non-finite, first at", "step s", "ratio"):
        table.add_column(column, overflow="fold")
    for name, variant in summary["variants"].items():
        latency = variant["latency"]
        table.add_row(
            name,
            variant["dtype"]["compute"],
            _short(variant["amax_final"]),
            _short(variant["latent_rel_l2"]),
            _short(variant["psnr_db"]),
            variant["error"] or _nonfinite(variant),
            _short(latency and latency["median_s"]),
            _ratio(latency),
        )
    console.print(table)
    for claim in summary["claims"]:
        effect = _short(claim["effect"])
        interval = "" if claim["ci95"] is None else " [{}, {}]".format(*map(_short, claim["ci95"]))
        line = f"{claim['verdict']:>12}  {claim['id']}: {claim['text']} (effect {effect}{interval})"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _nonfinite(variant: dict[str, Any]) -> str:
    first = variant["first_nonfinite"]
    if first is None:
        return _short(variant["num_nonfinite"])
    step = "" if first["step"] is None else f" step {first['step']}"
    return f"{variant['num_nonfinite']}, {first['site']}{step}"


def _ratio(latency: dict[str, Any] | None) -> str:
    if latency is None:
        return "-"
    if latency["ci95"] is None or latency["verdict"] == "baseline":
        return _short(latency["ratio"])
    lo, hi = latency["ci95"]
    return f"{latency['ratio']:.3f} [{lo:.3f}, {hi:.3f}] {latency['verdict']}"
