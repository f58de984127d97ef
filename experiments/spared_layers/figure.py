"""`python -m experiments.spared_layers.figure SUMMARY DIR`: drift against bits a weight, of all sets in three formats.

SUMMARY: summary.json of a run of +exp=spared_layers_searched, or of spared_layers_20b. Writes DIR/pareto.png and .svg,
and DIR/sets.json: for each published set and format its bits, its drift, and the ratio to the drift of the searched set
of its size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from precision_lab.record.files import write_json
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

FORMATS = {
    "affine4": "4 bits, affine groups",
    "nvfp4": "nvfp4, a scale a tensor",
    "fp8": "e4m3, a scale a channel",
}
SETS = {
    "sglang_fp8": "SGLang FP8",
    "sglang_convrot": "SGLang ConvRot",
    "vllm_omni_1034": "vLLM-Omni 1034",
    "vllm_omni_2795": "vLLM-Omni 2795",
    "modelopt": "ModelOpt",
    "mflux": "mflux",
    "comfyui": "ComfyUI",
    "nf4": "NF4 packs",
    "nunchaku": "Nunchaku",
    "modulation": "modulation alone",
    "img_mlp_out": "img_mlp.net.2 alone",
    "txt_mlp_out": "txt_mlp.net.2 alone",
}
_WORDS = {"refuted": "dominated", "supported": "tie", "inconclusive": "undecided"}
PUBLISHED, SEARCHED = style.PALETTE[1], style.PALETTE[0]


def draw(variants: Mapping[str, Any]) -> Drawing:
    """A panel for each format that was run. variants: those of a summary, by name."""
    figure = style.new_figure(4.4)
    formats = {form: title for form, title in FORMATS.items() if form in variants}
    panels = figure.subplots(1, len(formats), sharey=True, squeeze=False)[0]
    shown = [own for name, own in variants.items() if name.partition("_")[0] in formats]
    low, high = style.log_range([[own["latent_rel_l2"] for own in shown]])
    for axes, (form, title) in zip(panels, formats.items(), strict=True):
        _panel(axes, form, variants)
        style.log_axis(axes, low, high)
        axes.set_title(title)
        axes.set_xlabel("bits a weight")
    panels[0].set_ylabel("drift of the latents, rel. L2 (lower is better)")
    marks = [
        Line2D([], [], marker="*", color=SEARCHED, markersize=10, linewidth=1, label="searched, of the same size"),
        Line2D([], [], marker="D", color=style.INK, linestyle="none", label="every linear"),
        *(
            Line2D([], [], marker="o", color=PUBLISHED, linestyle="none", markersize=3, label=f"{number} {label}")
            for number, (name, label) in enumerate(SETS.items(), 1)
            if any(f"{form}_{name}" in variants for form in formats)
        ),
    ]
    figure.legend(handles=marks, loc="outside upper left", ncols=5, fontsize=8.5, columnspacing=1.2)
    return Drawing("pareto", "Drift against bits a weight", figure, "")


def _panel(axes: Axes, form: str, variants: Mapping[str, Any]) -> None:
    points = {name: (own["bits_per_weight"], own["latent_rel_l2"]) for name, own in variants.items()}
    searched = sorted(point for name, point in points.items() if name.startswith(f"{form}_searched_"))
    axes.plot(*zip(*searched, strict=True), marker="*", markersize=9, color=SEARCHED, linewidth=1, zorder=2)
    axes.plot(*points[form], marker="D", color=style.INK, markersize=5.5, zorder=3)
    for number, name in enumerate(SETS, 1):
        if (point := points.get(f"{form}_{name}")) is not None:
            axes.plot(*point, marker="o", markersize=3, color=PUBLISHED, zorder=3)
            offset = {"xytext": (3, 2), "textcoords": "offset points"}
            axes.annotate(str(number), point, color=PUBLISHED, fontsize=9, fontweight="bold", zorder=4, **offset)
    axes.grid(axis="x")


def judged(summary: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """By set and format. ratio, lo, hi: of drifts, published to searched, with the 95 % interval over prompts.

    word: dominated if the whole interval is above the margin of the claim, better if it is below 1, tie if it is within
    the margin, undecided otherwise. All are null where the format has no such set.
    """
    claims = {claim["subject"]: claim for claim in summary["claims"] if claim["id"].startswith("SS_")}
    return {
        name: {form: _judged(summary["variants"], claims.get(f"{form}_{name}")) for form in FORMATS} for name in SETS
    }


def _judged(variants: Mapping[str, Any], claim: Mapping[str, Any] | None) -> dict[str, Any]:
    if claim is None:
        return dict.fromkeys(("bits", "drift", "searched", "ratio", "lo", "hi", "word"))
    (lo, hi), own = claim["ci95"], variants[claim["subject"]]
    return {
        "bits": own["bits_per_weight"],
        "drift": own["latent_rel_l2"],
        "searched": variants[claim["against"]]["latent_rel_l2"],
        "ratio": claim["effect"],
        "lo": lo,
        "hi": hi,
        "word": "better" if hi < 1 else _WORDS[claim["verdict"]],
    }


def main(path: Path, out: Path) -> None:
    """Draws the figure of one summary, and writes its numbers."""
    out.mkdir(parents=True, exist_ok=True)
    summary = json.loads(path.read_text())
    write_json(out / "sets.json", judged(summary))
    with style.theme():
        style.save(draw(summary["variants"]), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
