"""Generates the weights of one double-stream block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain

import numpy as np

from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.synthetic.qwen_image.growth import Branch, Channels, Growth
from precision_lab.synthetic.qwen_image.modulation import Modulation, modulation
from precision_lab.synthetic.tensors import Array, Source, Tensor, whole

MASSIVE_INPUT = 0.5
"""Size of a massive channel at the input of a branch, where a bulk channel has unit standard deviation."""

ROW_SPREAD = 0.3
"""Relative standard deviation of the entries in the rows that write the massive channels."""

LARGEST_ROW = 1024.0
"""Largest mean entry of such a row; beyond it the hidden layer grows instead. Entries stay below 4096."""

HIDDEN_BIAS = 0.5
"""Standard deviation of the first linear's bias, relative to the rest of the hidden layer."""

OUTPUT_BIAS_SHARE = 0.25
"""Share of a branch's massive output that its last bias gives; adding it at another scale changes the function."""

LARGEST_BIAS = 2048.0
"""Largest bias of a massive channel, and 2.5 standard deviations of the others; no parameter may exceed 4096."""

COHERENT_GAIN = 0.95
"""Growth of the bulk along its own direction that the MLP adds, relative to the growth of the stream."""

MLP_NOISE = 0.15
"""Size of what the MLP adds to a bulk channel in other directions, relative to the bulk."""

BRANCH_BIAS = 0.06
"""Bulk entries of a branch's last bias, relative to the bulk; 0.05 to 0.5 of the bulk of the branch's output."""

CONTRAST = 0.3
"""Share of its attention average that a token subtracts from its bulk, so that tokens remain distinct."""

TEXT_ADVANTAGE = 1.5
"""Mean advantage of text tokens in the attention scores of image tokens, which far outnumber them."""

SLOW_ROTATION = 0.1
"""Radians a position; below it, RoPE hardly rotates a pair of channels."""


def block(
    i: int, config: TransformerConfig, growth: Growth, img: Channels, txt: Channels, source: Source
) -> Iterator[Tensor]:
    """Yields all tensors of block `i`."""
    name, width = f"transformer_blocks.{i}", config.dim
    attention, mlp = growth.attention(i), growth.mlp(i)
    for stream, channels in (("img", img), ("txt", txt)):
        scale = Modulation.scale(channels.normalised(MASSIVE_INPUT, 1.0))
        shift = Modulation.shift(width)
        chunks = chain.from_iterable((shift, scale, Modulation.gate(width, b.gate)) for b in (attention, mlp))
        yield from modulation(f"{name}.{stream}_mod.1", tuple(chunks), source)
        yield from _attention(f"{name}.attn", stream, config, attention, channels, source)
        yield from _mlp(f"{name}.{stream}_mlp", mlp, channels, source)


_PROJECTIONS = {
    "img": ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k"),
    "txt": ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k"),
}


def _attention(
    name: str, stream: str, config: TransformerConfig, branch: Branch, channels: Channels, source: Source
) -> Iterator[Tensor]:
    """Yields the attention tensors of one stream.

    The values of all tokens have the same mean, +-gain in each channel. Attention leaves it unchanged, because the
    weights of a row add up to one. The massive rows of the output linear read that mean; all others are orthogonal to
    it.
    """
    width = channels.width
    q, k, v, out, norm_q, norm_k = (f"{name}.{part}" for part in _PROJECTIONS[stream])
    signs = source.signs(f"{name} mean value", width)
    from_weights = branch.output - _massive_bias(branch)
    gain = max(1.0, from_weights / (width * LARGEST_ROW))

    def head_bias(linear: str) -> Array:
        bias = source.normal(f"{linear}.bias", (width,), 0.3)
        if linear.endswith(("to_q", "add_k_proj")):
            bias += np.tile(_text_direction(name, config, source), config.num_attention_heads)
        return bias

    for linear in (q, k):
        yield source.tensor(f"{linear}.weight", (width, width), width**-0.5)
        yield whole(f"{linear}.bias", (width,), partial(head_bias, linear))
    for norm in (norm_q, norm_k):
        yield source.tensor(f"{norm}.weight", (config.attention_head_dim,), 0.15, mean=1.1)

    def value_weight() -> Array:
        return source.normal(f"{v}.weight", (width, width), gain * width**-0.5)

    yield whole(f"{v}.weight", (width, width), value_weight)
    yield whole(f"{v}.bias", (width,), lambda: source.normal(f"{v}.bias", (width,), 0.3 * gain) + gain * signs)

    def weight() -> Array:
        # value^T value is gain^2 I plus noise of the same size
        rows = np.float32(-CONTRAST * branch.bulk / gain**2) * value_weight().T
        _remove(rows, signs)
        row = source.normal(f"{out}.weight", (len(channels.index), width), ROW_SPREAD, mean=1.0)
        entry = channels.amplitude * np.float32(from_weights / (gain * width))
        rows[channels.index] = entry[:, None] * row * signs
        return rows

    yield whole(f"{out}.weight", (width, width), weight)
    yield _output_bias(f"{out}.bias", branch, channels, source)


def _mlp(name: str, branch: Branch, channels: Channels, source: Source) -> Iterator[Tensor]:
    """Yields the tensors of one MLP, whose hidden units, positive in the mean, add up in the massive channels.

    The gain of the first linear makes the hidden layer N(0, std^2). Then E gelu = std^2 / sqrt(2 pi (1 + std^2)),
    E gelu' = 1/2, and Var gelu is close to 0.345 std^2.
    """
    width, hidden = channels.width, 4 * channels.width
    first, second = f"{name}.net.0.proj", f"{name}.net.2"
    from_weights = branch.output - _massive_bias(branch)
    relative = math.sqrt(1 + HIDDEN_BIAS**2)
    std = max(relative, _std_of_mean_gelu(from_weights / (hidden * LARGEST_ROW)))
    gain = std / relative
    row = from_weights / (hidden * _mean_gelu(std))

    def first_weight() -> Array:
        return source.normal(f"{first}.weight", (hidden, width), gain * width**-0.5)

    def second_weight() -> Array:
        rows = source.normal(f"{second}.weight", (width, hidden))
        massive = 1 + np.float32(ROW_SPREAD) * rows[channels.index]
        rows *= np.float32(MLP_NOISE * branch.bulk / (0.345 * hidden) ** 0.5 / std)
        # first^T first is close to (hidden / width) gain^2 I, and gelu' halves it
        aligned = first_weight().T
        aligned *= np.float32(COHERENT_GAIN * branch.growth * branch.bulk * 2 * width / (hidden * gain**2))
        rows += aligned
        _remove(rows, np.ones(hidden, np.float32))
        rows[channels.index] = (channels.amplitude * np.float32(row))[:, None] * massive
        return rows

    yield whole(f"{first}.weight", (hidden, width), first_weight)
    yield source.tensor(f"{first}.bias", (hidden,), HIDDEN_BIAS * gain)
    yield whole(f"{second}.weight", (width, hidden), second_weight)
    yield _output_bias(f"{second}.bias", branch, channels, source)


def _massive_bias(branch: Branch) -> float:
    """The last bias of a branch in the first massive channel; the weights give the rest of the output."""
    return min(LARGEST_BIAS, OUTPUT_BIAS_SHARE * branch.output)


def _output_bias(name: str, branch: Branch, channels: Channels, source: Source) -> Tensor:
    massive = channels.signed(_massive_bias(branch))
    std = min(LARGEST_BIAS / 2.5, BRANCH_BIAS * branch.bulk)
    return whole(name, massive.shape, lambda: source.normal(name, massive.shape, std) + massive)


def _remove(rows: Array, direction: Array) -> None:
    """Makes every row orthogonal to `direction` in place; the entries of `direction` are +-1."""
    rows -= (rows * direction).mean(axis=1, keepdims=True) * direction


def _text_direction(name: str, config: TransformerConfig, source: Source) -> Array:
    """The component (head_dim,) that image queries and text keys share.

    It uses the channels that RoPE rotates slowly, so that it contributes at all distances. After QK-RMSNorm each vector
    has the norm sqrt(head_dim). If two vectors share the fraction f of their squared length, their score is
    f * sqrt(head_dim).
    """
    slow = np.concatenate(
        [np.repeat(1e4 ** (-np.arange(0, d, 2) / d) < SLOW_ROTATION, 2) for d in config.axes_dims_rope]
    )
    if not slow.any():
        slow[:] = True
    share = min(0.5, TEXT_ADVANTAGE / config.attention_head_dim**0.5)
    size = math.sqrt(share / (1 - share) * config.attention_head_dim / slow.sum())
    signs = source.signs(f"{name} text direction", config.attention_head_dim)
    return signs * slow.astype(np.float32) * np.float32(size)


def _mean_gelu(std: float) -> float:
    """E gelu(x) for x ~ N(0, std^2)."""
    return std**2 / math.sqrt(2 * math.pi * (1 + std**2))


def _std_of_mean_gelu(mean: float) -> float:
    """The std for which `_mean_gelu` is `mean`."""
    k = 2 * math.pi * mean**2
    return math.sqrt((k + math.sqrt(k**2 + 4 * k)) / 2)
