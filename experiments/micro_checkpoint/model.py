"""The transformer as a function of stacked parameters, for training; parameters are exported under diffusers' names.

All blocks have the same shapes, so each parameter is stored once, stacked over the blocks: one optimiser kernel updates
60 tensors, and one matrix product computes all blocks' modulation. The computation is QwenImageTransformer2DModel's
(`verify.py` compares the two), with bf16 matrix products, fp32 residual streams, and factors on the gates (growth.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its name in all PyTorch code

EPS = 1e-6
Parameters = dict[str, torch.Tensor]

STREAMS = {
    "img": ("to_q", "to_k", "to_v", "norm_q", "norm_k", "to_out.0"),
    "txt": ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k", "to_add_out"),
}


class Batch(NamedTuple):
    """B samples of N image and T text positions, padded.

    latents: (B, N, 64) noisy, packed. timestep: (B,) in 0 .. 1. text: (B, T, 64). mask: (B, T + N) bool, valid
    positions. cos, sin: (B, T + N, head_dim / 2) of RoPE's angles.
    """

    latents: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


class Output(NamedTuple):
    """velocity: (B, N, 64) fp32. amax: (blocks + 1,) of the image stream at valid positions, from img_in on.

    rms: by stream, (blocks, width) root mean square of each channel over all valid tokens, after each block.
    """

    velocity: torch.Tensor
    amax: torch.Tensor
    rms: dict[str, torch.Tensor]


def forward(
    p: Parameters,
    batch: Batch,
    factors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    block: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> Output:
    """factors: by stream, (blocks, 6 * width), multiply the modulation vectors. dtype: of the matrix products.

    block: a compiled form of `block_forward`, if any.
    """
    run = block or block_forward
    blocks = len(factors["img"])
    low = {name: tensor.to(dtype) for name, tensor in p.items() if tensor.ndim > 1 or name.endswith("bias")}
    image = _linear(batch.latents, low, "img_in").float()
    text = F.rms_norm(batch.text, (batch.text.shape[-1],), p["txt_norm.weight"], EPS)
    text = _linear(text, low, "txt_in").float()
    time = F.silu(_time_embedding(batch.timestep, low))
    modulation = {stream: _modulation(time, low, p, stream, factors[stream]) for stream in STREAMS}
    layers = unbound(low, p, blocks)
    bias = torch.zeros_like(batch.mask, dtype=dtype).masked_fill(~batch.mask, float("-inf"))
    bias = bias[:, None, None, :].expand(-1, 1, bias.shape[1], -1)
    words, valid = batch.mask[..., None].split((text.shape[1], image.shape[1]), dim=1)
    amax = [_amax(image, valid)]
    rms: dict[str, list[torch.Tensor]] = {stream: [] for stream in STREAMS}
    for i in range(blocks):
        mods = modulation["img"][i], modulation["txt"][i]
        image, text = run(image, text, *mods, bias, batch.cos, batch.sin, layers[i])
        amax.append(_amax(image, valid))
        for stream, state, mask in (("img", image, valid), ("txt", text, words)):
            rms[stream].append(_rms(state, mask))
    scale, shift = _linear(time, low, "norm_out.linear").float()[:, None].chunk(2, dim=-1)
    normed = _norm(image) * (1 + scale) + shift
    sizes = {stream: torch.stack(parts) for stream, parts in rms.items()}
    return Output(_linear(normed, low, "proj_out").float(), torch.stack(amax), sizes)


def block_forward(
    image: torch.Tensor,
    text: torch.Tensor,
    image_mod: torch.Tensor,
    text_mod: torch.Tensor,
    bias: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    p: Parameters,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One double-stream block; both streams stay in fp32."""
    shift1, scale1, gate1, shift2, scale2, gate2 = image_mod[:, None].chunk(6, dim=-1)
    t_shift1, t_scale1, t_gate1, t_shift2, t_scale2, t_gate2 = text_mod[:, None].chunk(6, dim=-1)
    q, k, v = _heads(_norm(image) * (1 + scale1) + shift1, p, "img")
    t_q, t_k, t_v = _heads(_norm(text) * (1 + t_scale1) + t_shift1, p, "txt")
    q = rotate(torch.cat((t_q, q), 1), cos, sin).to(v.dtype)
    k = rotate(torch.cat((t_k, k), 1), cos, sin).to(v.dtype)
    v = torch.cat((t_v, v), 1)
    joint = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=bias.expand(-1, q.shape[2], -1, -1)
    )
    joint = joint.transpose(1, 2).flatten(2)
    length = text.shape[1]
    image = image + gate1 * _linear(joint[:, length:], p, "attn.to_out.0")
    text = text + t_gate1 * _linear(joint[:, :length], p, "attn.to_add_out")
    image = image + gate2 * _mlp(_norm(image) * (1 + scale2) + shift2, p, "img_mlp")
    text = text + t_gate2 * _mlp(_norm(text) * (1 + t_scale2) + t_shift2, p, "txt_mlp")
    return image, text


def _modulation(
    time: torch.Tensor, low: Parameters, p: Parameters, stream: str, factor: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The modulation vectors by block, (B, 6 * width) fp32; one product computes those of all blocks."""
    products = torch.einsum("bi,noi->nbo", time, low[f"blocks.{stream}_mod.1.weight"]).float()
    return ((products + p[f"blocks.{stream}_mod.1.bias"][:, None]) * factor[:, None]).unbind(0)


def _heads(x: torch.Tensor, p: Parameters, stream: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, (B, L, heads, head_dim) each; queries and keys are normalised in fp32."""
    to_q, to_k, to_v, norm_q, norm_k, _ = STREAMS[stream]
    weight = torch.cat([p[f"attn.{name}.weight"] for name in (to_q, to_k, to_v)])
    joint_bias = torch.cat([p[f"attn.{name}.bias"] for name in (to_q, to_k, to_v)])
    size = len(p[f"attn.{norm_q}.weight"])
    q, k, v = (y.unflatten(-1, (-1, size)) for y in F.linear(x.to(weight.dtype), weight, joint_bias).chunk(3, dim=-1))
    q = F.rms_norm(q.float(), (size,), p[f"attn.{norm_q}.weight"], EPS)
    k = F.rms_norm(k.float(), (size,), p[f"attn.{norm_k}.weight"], EPS)
    return q, k, v


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Applies RoPE to x: (B, S, heads, head_dim), with interleaved pairs."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def _mlp(x: torch.Tensor, p: Parameters, name: str) -> torch.Tensor:
    hidden = F.gelu(_linear(x, p, f"{name}.net.0.proj"), approximate="tanh")
    return _linear(hidden, p, f"{name}.net.2")


def _norm(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=EPS)


def _linear(x: torch.Tensor, p: Parameters, name: str) -> torch.Tensor:
    weight = p[f"{name}.weight"]
    return F.linear(x.to(weight.dtype), weight, p[f"{name}.bias"])


def _time_embedding(timestep: torch.Tensor, p: Parameters) -> torch.Tensor:
    """(B, width): 128 cosines, then 128 sines, of 1000 t times `frequencies`, through an MLP."""
    # in diffusers' order of operations: arguments reach 1000 rad, so the last bit of each matters
    angles = 1000 * (timestep[:, None].float() * frequencies(timestep.device))
    features = torch.cat((angles.cos(), angles.sin()), -1)
    name = "time_text_embed.timestep_embedder"
    return _linear(F.silu(_linear(features, p, f"{name}.linear_1")), p, f"{name}.linear_2")


def frequencies(device: torch.device) -> torch.Tensor:
    """(128,) 1e4 ** (-i / 128)."""
    return torch.exp(-math.log(1e4) * torch.arange(128, dtype=torch.float32, device=device) / 128)


def _amax(image: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return (image.detach() * valid).abs().amax()


def _rms(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Root mean square (k,) over the valid positions of (B, L, k)."""
    return ((values.square() * mask).sum((0, 1)) / mask.sum()).sqrt()


def unbound(low: Parameters, p: Parameters, blocks: int) -> list[Parameters]:
    """The parameters of each block; norms in fp32."""
    layers: list[Parameters] = [{} for _ in range(blocks)]
    for name in p:
        if name.startswith("blocks.") and "_mod." not in name:
            tensor = p[name] if ".norm_" in name else low[name]
            for layer, part in zip(layers, tensor.unbind(0), strict=True):
                layer[name.removeprefix("blocks.")] = part
    return layers


def stack(published: Mapping[str, torch.Tensor]) -> Parameters:
    """Stacks parameters with diffusers' names: `transformer_blocks.{i}.X` of all blocks becomes `blocks.X`."""
    stacked: Parameters = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in published.items():
        if name.startswith("transformer_blocks."):
            _, i, rest = name.split(".", 2)
            parts.setdefault(rest, {})[int(i)] = tensor
        else:
            stacked[name] = tensor
    for rest, tensors in parts.items():
        stacked[f"blocks.{rest}"] = torch.stack([tensors[i] for i in range(len(tensors))])
    return stacked


def unstack(parameters: Parameters) -> dict[str, torch.Tensor]:
    """The inverse of `stack`."""
    published = {}
    for name, tensor in parameters.items():
        if name.startswith("blocks."):
            for i, part in enumerate(tensor.unbind(0)):
                published[f"transformer_blocks.{i}.{name.removeprefix('blocks.')}"] = part.contiguous()
        else:
            published[name] = tensor
    return published
