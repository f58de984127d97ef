"""Our Qwen-Image-2.1 transformer in the benchmark; see `mlx_model.Ours`."""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_flatten

from experiments.benchmarks.gpu.mlx_model import Forward, Inputs, joint, times
from precision_lab.model.qwen_image_21.prefix import Prefix
from precision_lab.model.qwen_image_21.transformer import Transformer

__all__ = ["LINEARS", "PASSES", "REORDERED", "SETUPS", "Transformer", "prefill", "step"]


def step(model: Transformer) -> Forward:
    """The pass of the target alone. The first call with a text computes its prefix, and later ones reuse it."""
    prefixes: dict[int, tuple[mx.array, Prefix]] = {}

    def forward(inputs: Inputs, timestep: float) -> mx.array:
        text = inputs.text
        if id(text) not in prefixes:
            # text is kept with it because another array could get its id once it is freed
            prefixes[id(text)] = text, model.prefill(text, inputs.mask)
            mx.eval(prefixes[id(text)][1])
        _, prefix = prefixes[id(text)]
        return model(inputs.latents, times(inputs, timestep), text, inputs.grid, inputs.mask, prefix)

    return forward


def prefill(model: Transformer) -> Forward:
    """The keys and values of a prompt, which do not depend on the latents or the timestep."""

    def forward(inputs: Inputs, timestep: float) -> list[mx.array]:
        return [array for _, array in tree_flatten(model.prefill(inputs.text, inputs.mask))]

    return forward


PASSES = {"": step, ", joint": joint}
SETUPS = {"prefill": prefill}
REORDERED = ("transformer_blocks.*.{attn.{to_q,to_k,to_v},img_mlp.out}",)
LINEARS = ("transformer_blocks.*.{img_mlp.{proj,gate_layer,out},attn.{to_q,to_k,to_v,to_out.0}}",)
