"""The last lines of a run: a table of variants and the verdicts on claims."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from precision_lab.analysis.conclusion import drift, sentences
from precision_lab.cli.terminal import print_table
from precision_lab.errors import visible
from precision_lab.record.layout import Layout
from precision_lab.record.manifest import Reference
from precision_lab.record.origin import wording
from precision_lab.record.summary import Latency, Quantity, Summary, VariantSummary

_PLACE = "non-finite, first at"


def print_summary(summary: Summary, layout: Layout, console: Console) -> None:
    """Prints reasons to doubt the run, its variants, then its claims. layout: of the run, which names its result."""
    for entry in summary.health:
        console.print(Text(f"UNSOUND: {visible(entry.text)}", style="bold red"), soft_wrap=True)
    about = (wording(summary.weights, summary.path).phrase, *summary.notes)
    title = f"{summary.experiment} ({', '.join(filter(None, (*about, _reference(summary))))})"
    metrics = list(dict.fromkeys(name for variant in summary.variants.values() for name in variant.metrics))
    distance = f"{layout.result.title} rel_l2"
    columns = ("variant", "dtype", "GB", "bits", "amax", distance, "psnr dB", *metrics, _PLACE, "step s", "ratio")
    rows = [
        (
            name,
            variant.dtype.compute,
            "-" if variant.weight_bytes.value is None else _number(variant.weight_bytes.value / 1e9),
            _short(variant.bits_per_weight),
            *map(_short, (variant.amax_final, variant.latent_rel_l2)),
            "identical" if variant.psnr_db.reason == "identical" else _short(variant.psnr_db),
            *(_short(variant.metrics.get(metric)) for metric in metrics),
            variant.error or _nonfinite(variant, layout),
            _number(variant.latency.median_s if variant.latency else None),
            _ratio(variant.latency),
        )
        for name, variant in summary.variants.items()
    ]
    print_table(console, columns, rows, title, folding=(_PLACE,))
    for claim, sentence in zip(summary.claims, sentences(summary.claims), strict=True):
        line = f"{claim.verdict:>12}  {claim.id}: {sentence.text} ({sentence.evidence})"
        console.print(line, soft_wrap=True)
    if not summary.claims and (said := drift(summary.variants, summary.reference)):
        console.print(said, soft_wrap=True)


def _reference(summary: Summary) -> str:
    """What the reference is, if it is not the plain model in fp32."""
    entry = summary.variants.get(summary.reference)
    if entry is None:
        return ""
    reference = Reference(summary.reference, entry.dtype.compute, entry.techniques)
    return "" if reference.is_plain else f"against {reference.words}, not against plain float32"


def _short(quantity: Quantity | None) -> str:
    return _number(quantity.value if quantity else None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _nonfinite(variant: VariantSummary, layout: Layout) -> str:
    first = variant.first_nonfinite
    if first is None:
        return _count(variant.num_nonfinite)
    step = "" if first.step is None else f" step {first.step}"
    count = "0 recorded" if variant.num_nonfinite.value == 0 else _count(variant.num_nonfinite)
    doubt = "" if first.inputs_finite else " (may have received it)"
    return f"{count}, {layout.address(first.component, first.site, first.port)}{step}{doubt}"


def _count(quantity: Quantity) -> str:
    return "-" if quantity.value is None else str(quantity.value)


def _ratio(latency: Latency | None) -> str:
    if latency is None:
        return "-"
    if latency.ci95 is None or latency.verdict == "baseline":
        return _number(latency.ratio)
    return f"{latency.ratio:.3f} {_interval(latency.ci95, '.3f')} {latency.verdict}"


def _interval(bounds: Sequence[float], form: str) -> str:
    return "[" + ", ".join(format(bound, form) for bound in bounds) + "]"
