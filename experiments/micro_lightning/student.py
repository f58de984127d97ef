"""The base transformer and its low-rank adapter as functions of stacked parameters.

The adapted weight is W + diag(s) B A, where s are the norms of W's rows. The folded growth makes the rows of W differ
by a factor of 1e6, so B is trained relative to them: its entries are relative changes of an output, and one learning
rate suits all layers. The exported `lora_B` is diag(s) B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

from experiments.micro_checkpoint.data import TEXT_TOKENS
from experiments.micro_checkpoint.model import Batch, Parameters, forward, stack
from experiments.micro_checkpoint.pools import Grid, angles

GRID: Grid = (8, 8)
"""Rows and columns of tokens of a picture of 128x128."""

RANK = 4
TARGETS = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    *(f"{stream}_{part}" for stream in ("img", "txt") for part in ("mod.1", "mlp.net.0.proj", "mlp.net.2")),
)
"""All linears of a block."""


@dataclass(frozen=True)
class Base:
    """The embedded checkpoint's transformer in fp32, for pictures of GRID. cos, sin: (T + N, head_dim / 2)."""

    parameters: Parameters
    factors: dict[str, torch.Tensor]
    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def load(cls, checkpoint: Path) -> Base:
        folder = checkpoint / "transformer"
        return cls.of(QwenImageTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32))

    @classmethod
    def of(cls, model: QwenImageTransformer2DModel) -> Base:
        parameters = {name: tensor.detach() for name, tensor in stack(model.state_dict()).items()}
        turns = angles(model, GRID, GRID[0] * GRID[1], TEXT_TOKENS)
        # the growth is folded into the exported weights
        factors = {s: torch.ones_like(parameters[f"blocks.{s}_mod.1.bias"]) for s in ("img", "txt")}
        return cls(parameters, factors, turns.real.contiguous(), turns.imag.contiguous())

    def velocity(
        self,
        latents: torch.Tensor,
        sigma: float,
        text: torch.Tensor,
        mask: torch.Tensor,
        parameters: Parameters | None = None,
    ) -> torch.Tensor:
        """(B, N, 64) fp32, by the given parameters or the base's. text: (B, T, 64); mask: (B, T) of its tokens."""
        samples, tokens, _ = latents.shape
        valid = torch.cat((mask, mask.new_ones(samples, tokens)), 1)
        time = torch.full((samples,), float(sigma))
        turns = (part[None].expand(samples, -1, -1) for part in (self.cos, self.sin))
        batch = Batch(latents, time, text, valid, *turns)
        return forward(parameters or self.parameters, batch, self.factors, torch.float32).velocity


def initial(base: Base, seed: int, rank: int = RANK) -> Parameters:
    """An adapter that changes nothing: B is zero, and A x has unit size for an x of unit size."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for target in TARGETS:
        blocks, outputs, inputs = base.parameters[f"blocks.{target}.weight"].shape
        adapter[f"{target}.A"] = torch.randn(blocks, rank, inputs, generator=generator) / math.sqrt(inputs)
        adapter[f"{target}.B"] = torch.zeros(blocks, outputs, rank)
    return adapter


def row_norms(base: Base) -> Parameters:
    """By target, (blocks, outputs, 1) the norm of each row of the weight."""
    return {target: base.parameters[f"blocks.{target}.weight"].norm(dim=2, keepdim=True) for target in TARGETS}


def adapted(base: Base, adapter: Parameters, norms: Parameters) -> Parameters:
    """The base's parameters with the adapter added to the weights, differentiable by the adapter."""
    parameters = dict(base.parameters)
    for target in TARGETS:
        change = norms[target] * (adapter[f"{target}.B"] @ adapter[f"{target}.A"])
        parameters[f"blocks.{target}.weight"] = base.parameters[f"blocks.{target}.weight"] + change
    return parameters


def sample(
    base: Base,
    latents: torch.Tensor,
    sigmas: Sequence[float],
    text: torch.Tensor,
    mask: torch.Tensor,
    parameters: Parameters | None = None,
) -> list[torch.Tensor]:
    """The latents at each level of `sigmas`, by Euler steps without guidance."""
    states = [latents]
    for now, following in pairwise(sigmas):
        velocity = base.velocity(states[-1], now, text, mask, parameters)
        states.append(states[-1] + (following - now) * velocity)
    return states


def export(base: Base, adapter: Parameters, path: Path) -> int:
    """Writes the adapter in bf16 as diffusers does, with its rank and alpha, and returns the number of adapted linears.

    Alpha is the rank, so the change is lora_B @ lora_A. It is stored once, in the metadata: diffusers refuses a tensor
    `alpha` beside `lora_A`. A linear whose B is zero is omitted: the text that leaves the last block is not used, so
    the linears that compute it receive no gradient.
    """
    norms, tensors = row_norms(base), {}
    for target in TARGETS:
        downs = adapter[f"{target}.A"].detach()
        ups = norms[target] * adapter[f"{target}.B"].detach()
        for i, (down, up) in enumerate(zip(downs, ups, strict=True)):
            if up.any():
                tensors[f"transformer_blocks.{i}.{target}.lora_A.weight"] = down.bfloat16().contiguous()
                tensors[f"transformer_blocks.{i}.{target}.lora_B.weight"] = up.bfloat16().contiguous()
    rank = adapter[f"{TARGETS[0]}.A"].shape[1]
    QwenImagePipeline.save_lora_weights(
        path.parent,
        transformer_lora_layers=dict(sorted(tensors.items())),
        transformer_lora_adapter_metadata={"r": rank, "lora_alpha": rank, "target_modules": sorted(TARGETS)},
        weight_name=path.name,
    )
    return len(tensors) // 2
