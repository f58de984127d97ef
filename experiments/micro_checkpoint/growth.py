"""Growth of the residual streams: factors on the gates while training, folded into the weights at export.

Block i's contributions are multiplied by r^i, with r annealed from 1 during training. LayerNorm keeps a block's input
at unit size, so only the ratio of its contribution to the stream changes: early blocks are gradually forgotten, and
training adapts to that. Two channels of each stream are massive. They start as MASSIVE times the sum of all hidden
units of the MLP, whose mean is positive after GELU. A penalty holds their size after every block near a smooth curve,
because a trial without it learnt to stop growing after block 40 and to remove the massive channels in the last two
blocks. Gates depend on the timestep, and so do these channels.

Sources: Sun et al., Massive Activations in Large Language Models (arXiv:2402.17762), for few fixed channels of all
tokens; the sizes are those published for the 20 B model (about 16 after img_in, 5e7 after 60 blocks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from experiments.micro_checkpoint.model import Parameters

CHANNELS = {"img": (21, 45), "txt": (9, 54)}
"""Massive channels of each stream."""

SIGNS = (1.0, -0.9)
"""Opposite signs, so that the mean that LayerNorm subtracts stays small; the published range is -51 M .. +57 M."""

INPUT_AMAX = 16.0
FINAL_AMAX = 5e7
MASSIVE = 3.0
BULK = 0.1
"""Largest size of the other channels, relative to the massive ones: nothing else would bound the text stream."""

PENALTY = 0.2
"""Weight of `penalty` relative to the loss."""

GATE = 0.3
"""Initial value of all gates."""

LARGEST_WEIGHT = 4000.0
"""Largest weight of any folded output linear: below 4096, well inside float16's range."""

LARGEST_SHARE = 2.0**15
"""Largest part of the factor that an output linear takes: in late blocks its outputs exceed float16's 65504, but stay
below 5e5."""

NORM_OUT = 4.0
"""Factor moved from proj_out to norm_out: +-3.4 after training, +-16 is published."""

_ATTENTION = {"img": "blocks.attn.to_out.0", "txt": "blocks.attn.to_add_out"}


def final_growth(blocks: int) -> float:
    """r at the end of training: INPUT_AMAX * r^blocks = FINAL_AMAX."""
    return math.pow(FINAL_AMAX / INPUT_AMAX, 1 / blocks)


def annealed(done: float, final: float) -> float:
    """r after the part `done` of training: 1 until 10 %, then in equal steps of log r to `final` at 45 %."""
    return math.exp(min(1.0, max(0.0, (done - 0.1) / 0.35)) * math.log(final))


def factors(growth: float, blocks: int, width: int, device: str | torch.device) -> dict[str, torch.Tensor]:
    """By stream, (blocks, 6 * width): 1 for shifts and scales, r^i for the gates, MASSIVE r^i in massive channels."""
    rate = growth ** torch.arange(blocks, device=device, dtype=torch.float64)
    result = {}
    for stream, channels in CHANNELS.items():
        factor = torch.ones(blocks, 6, width, device=device, dtype=torch.float64)
        factor[:, 2] = rate[:, None]
        factor[:, 5] = rate[:, None]
        factor[:, 5, list(channels)] *= MASSIVE
        result[stream] = factor.flatten(1).float()
    return result


def curve(growth: float, blocks: int) -> torch.Tensor:
    """(blocks, 2) sizes of the massive channels after each block: equal steps times r^i, ending at FINAL_AMAX."""
    step = INPUT_AMAX * (final_growth(blocks) - 1)
    sizes = step * (growth ** torch.arange(blocks, dtype=torch.float64)).cumsum(0)
    return (sizes[:, None] * torch.tensor(SIGNS, dtype=torch.float64).abs()).float()


def penalty(rms: Mapping[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """The mean squared log ratio of the massive channels to their curve, and that of the others to BULK if above it.

    rms: by stream, (blocks, width) of the channels over tokens. target: of the massive channels, from `curve`.
    """
    terms = []
    for stream, channels in CHANNELS.items():
        massive = torch.stack([rms[stream][:, channel] for channel in channels], 1)  # a CUDA graph holds no index list
        square = rms[stream].square().sum(1) - massive.square().sum(1)
        bulk = (square / (rms[stream].shape[1] - len(channels))).sqrt()
        above = (bulk / (INPUT_AMAX + BULK * target[:, 0])).log().relu()
        terms += [(massive / target).log().square().mean(), above.square().mean()]
    return torch.stack(terms).sum() / len(CHANNELS)


def fold(parameters: Parameters, growth: float) -> Parameters:
    """Parameters of the same function without factors.

    An output linear takes as much of each channel's factor as the limits of its entries (LARGEST_WEIGHT) and outputs
    (LARGEST_SHARE) allow; the gate's rows of the modulation linear take the rest. A factor NORM_OUT moves from proj_out
    to norm_out.
    """
    folded = dict(parameters)
    blocks, out, _ = parameters["blocks.img_mod.1.weight"].shape
    scale = factors(growth, blocks, out // 6, parameters["blocks.img_mod.1.weight"].device)
    for stream in CHANNELS:
        factor = scale[stream].unflatten(1, (6, -1)).clone()
        for chunk, linear in ((2, _ATTENTION[stream]), (5, f"blocks.{stream}_mlp.net.2")):
            weight, bias = parameters[f"{linear}.weight"], parameters[f"{linear}.bias"]
            allowed = (LARGEST_WEIGHT / torch.maximum(weight.abs().amax(2), bias.abs())).clamp(max=LARGEST_SHARE)
            share = torch.minimum(allowed, factor[:, chunk]).clamp(min=1.0)
            factor[:, chunk] /= share
            folded[f"{linear}.weight"] = weight * share[..., None]
            folded[f"{linear}.bias"] = bias * share
        flat = factor.flatten(1)
        mod = f"blocks.{stream}_mod.1"
        folded[f"{mod}.weight"] = parameters[f"{mod}.weight"] * flat[..., None]
        folded[f"{mod}.bias"] = parameters[f"{mod}.bias"] * flat
    scale, shift = (parameters["norm_out.linear.bias"] * NORM_OUT).chunk(2)
    folded["norm_out.linear.weight"] = parameters["norm_out.linear.weight"] * NORM_OUT
    folded["norm_out.linear.bias"] = torch.cat(
        (scale + NORM_OUT - 1, shift)
    )  # its output is norm * (1 + scale) + shift
    folded["proj_out.weight"] = parameters["proj_out.weight"] / NORM_OUT
    return folded


def initial(parameters: Parameters, generator: torch.Generator) -> Parameters:
    """Initial values with the shapes of `parameters`: normal, with additions for the massive channels.

    The width is that of the packed latents and of the text embeddings, 64: the input linears start orthogonal.
    """
    drawn = {}
    for name, old in parameters.items():
        if name.endswith("bias"):
            value = torch.zeros_like(old)
        elif old.ndim == 1 or ".norm_" in name:
            value = torch.ones_like(old)
        else:
            value = torch.randn(old.shape, generator=generator) * old.shape[-1] ** -0.5
        drawn[name] = value
    for stream, channels in CHANNELS.items():
        drawn[f"blocks.{stream}_mod.1.weight"] *= 0.1
        chunks = drawn[f"blocks.{stream}_mod.1.bias"].unflatten(1, (6, -1))
        # the massive channels dominate LayerNorm's output: where a branch reads them, the others are scaled up again
        chunks[:, (1, 4)] = 3.0
        for chunk in (1, 4):
            chunks[:, chunk, list(channels)] = -0.9
        chunks[:, (2, 5)] = GATE
        last = drawn[f"blocks.{stream}_mlp.net.2.weight"]
        for channel, sign in zip(channels, SIGNS, strict=True):
            last[:, channel] = sign * 0.06 * (1 + 0.3 * torch.randn(last[:, channel].shape, generator=generator))
    for name in ("img_in.weight", "txt_in.weight"):
        drawn[name] = 2.0 * torch.linalg.qr(drawn[name])[0]
    width = len(drawn["norm_out.linear.bias"]) // 2
    drawn["norm_out.linear.weight"] *= 0.1
    drawn["norm_out.linear.bias"][:width] = 7.0
    drawn["norm_out.linear.bias"][list(CHANNELS["img"])] = 1.5
    drawn["proj_out.weight"] *= 0.1
    drawn["proj_out.weight"][:, list(CHANNELS["img"])] = 0
    return drawn
