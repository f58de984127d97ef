"""What the model card of a generated checkpoint of Qwen-Image 1.x says of growth and biases."""

from __future__ import annotations

from precision_lab.synthetic.qwen_image.growth import INPUT_AMAX
from precision_lab.synthetic.statistics import BiasStatistics

_GROWTH = """\
It serves to study numerical precision without the 20 B model, because its activations grow through
depth as published for that model. The largest channels of the residual streams grow by a factor of {growth:.4f} a
block, from about {start:.0f} to about {end:.3g} after {layers} blocks."""

_BIASES = """\

## Biases of the transformer

Magnitudes as stored. Each entry is the range over the tensors of one kind (`*` is the block number). The median is
that of the ordinary channels. The largest value is that of the few massive channels, if the kind writes them.

| bias | tensors | median | largest |
|---|---|---|---|
{rows}
"""


def growth(factor: float, layers: int) -> str:
    """How the streams grow. factor: that of a block."""
    return _GROWTH.format(growth=factor, start=INPUT_AMAX, end=INPUT_AMAX * factor**layers, layers=layers)


def biases(statistics: BiasStatistics) -> str:
    """The section on the biases. statistics: those of the biases as written."""
    prefixes = ("img_in.", "txt_in.", "time_text_embed.", "transformer_blocks.", "norm_out.", "proj_out.")
    rows = (
        f"| {row.kind} | {row.tensors} | {_range(*row.median)} | {_range(*row.largest)} |"
        for prefix in prefixes
        for row in statistics.rows(prefix)
    )
    return _BIASES.format(rows="\n".join(rows))


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
