"""The transformer as a function of stacked parameters, for training; parameters are exported under diffusers' names.

The computation is QwenImage21Transformer2DModel's (`verify.py` compares the two) for text-to-image, where the prefix is
text, with bf16 matrix products and an fp32 residual stream. Parameters of all blocks are stacked, as in the micro
checkpoint's recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its name in all PyTorch code

from experiments.micro_checkpoint.model import EPS, Parameters, frequencies, rotate, unbound


class Batch(NamedTuple):
    """B samples of T text positions, padded on the right, and N image positions.

    latents: (B, N, channels) noisy. timestep: (B,) in 0 .. 1. text: (B, T, J). mask: (B, T) bool, valid text positions.
    cos, sin: (B, T + N, head_dim / 2) of RoPE's angles.
    """

    latents: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


Block = Callable[..., torch.Tensor]


def forward(
    p: Parameters,
    batch: Batch,
    dtype: torch.dtype,
    block: Block | None = None,
    streams: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """The velocity (B, N, channels) in fp32.

    dtype: of the matrix products. block: a compiled form of `block_forward`. streams: receives the residual stream
    (B, T + N, width) before the first block and after each.
    """
    run = block or block_forward
    blocks = len(p["blocks.attn.norm_q.weight"])
    low = {name: tensor.to(dtype) for name, tensor in p.items() if ".norm_" not in name and "text_norm" not in name}
    image = _linear(batch.latents, low, "img_in").float()
    text = F.rms_norm(batch.text, (batch.text.shape[-1],), p["txt_in.text_norm.weight"] + 1, EPS)
    text = F.gelu(_linear(text, low, "txt_in.in_layer"), approximate="tanh")
    text = _linear(text, low, "txt_in.out_layer").float()
    length = text.shape[1]
    x = torch.cat((text, image), 1)
    # text is modulated with time 0, whatever the time of the sample
    time = torch.cat((batch.timestep, batch.timestep.new_zeros(1)))
    name = "time_text_embed.timestep_embedder"
    angles = (1000 * time.float())[:, None] * frequencies(time.device)
    features = torch.cat((angles.cos(), angles.sin()), -1)
    time = F.silu(_linear(F.silu(_linear(features, low, f"{name}.linear_1")), low, f"{name}.linear_2"))
    modulation = _linear(time, low, "modulation.1").float()
    bias = attention_bias(batch.mask, x.shape[1], dtype)
    if streams is not None:
        streams.append(x)
    for layer in unbound(low, p, blocks):
        x = run(x, modulation, bias, batch.cos, batch.sin, layer, length)
        if streams is not None:
            streams.append(x)
    scale = _linear(time[:-1], low, "norm_out.linear").float()
    return _linear(_norm(x[:, length:]) * (1 + scale[:, None]), low, "proj_out").float()


def attention_bias(mask: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, S, S) with 0 where a query sees a key, else -inf, for text positions `mask` (B, T) and S = `length`.

    Text is causal; image tokens see all; padding is seen by nobody but itself, so that no row is empty. The rows lie at
    multiples of 8 elements in memory, as PyTorch's fused attention requires.
    """
    samples, text = mask.shape
    seen = torch.ones(length, length, dtype=torch.bool, device=mask.device)
    seen[:text] = torch.ones_like(seen[:text]).tril()
    keys = F.pad(mask, (0, length - text), value=True)
    visible = (seen & keys[:, None]) | torch.eye(length, dtype=torch.bool, device=mask.device)
    padded = -(-length // 8) * 8
    bias = torch.zeros(samples, 1, length, padded, dtype=dtype, device=mask.device)[..., :length]
    return bias.masked_fill_(~visible[:, None], float("-inf"))


def block_forward(
    x: torch.Tensor,
    modulation: torch.Tensor,
    bias: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    p: Parameters,
    length: int,
) -> torch.Tensor:
    """One block; the stream stays in fp32. modulation: (B + 1, 4 * width), the last row for `length` text tokens."""
    is_image = (torch.arange(x.shape[1], device=x.device) >= length)[None, :, None]
    scale1, gate1, scale2, gate2 = torch.where(is_image, modulation[:-1, None], modulation[-1]).chunk(4, dim=-1)
    h = (_norm(x) * (1 + scale1)).to(bias.dtype)
    q, k, v = F.linear(h, torch.cat([p[f"attn.{name}.weight"] for name in ("to_q", "to_k", "to_v")])).chunk(3, dim=-1)
    size = len(p["attn.norm_q.weight"])
    q, k, v = (y.unflatten(-1, (-1, size)) for y in (q, k, v))
    q = rotate(F.rms_norm(q.float(), (size,), p["attn.norm_q.weight"], EPS), cos, sin).to(v.dtype)
    k = rotate(F.rms_norm(k.float(), (size,), p["attn.norm_k.weight"], EPS), cos, sin).to(v.dtype)
    attended = F.scaled_dot_product_attention(
        *(y.transpose(1, 2) for y in (q, k, v)), attn_mask=bias.expand(-1, q.shape[2], -1, -1)
    )
    x = x + gate1.tanh() * _linear(attended.transpose(1, 2).flatten(2), p, "attn.to_out.0")
    h = (_norm(x) * (1 + scale2)).to(bias.dtype)
    hidden = F.silu(_linear(h, p, "img_mlp.gate_layer")) * _linear(h, p, "img_mlp.proj")
    return x + gate2.tanh() * _linear(hidden, p, "img_mlp.out")


def _norm(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=EPS)


def _linear(x: torch.Tensor, p: Parameters, name: str) -> torch.Tensor:
    weight = p[f"{name}.weight"]
    return F.linear(x.to(weight.dtype), weight)
