"""One forward of Qwen-Image's transformer in several programs, over the same weights and inputs.

The arms compute in bfloat16, and are compared with ours in fp32, with the weights and inputs of bfloat16: ours, mflux,
mflux with the sinusoids of the timestep in fp32, and diffusers where torch is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from experiments.mflux_timestep.subject import adapted
from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.replica import replica
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid
from precision_lab.techniques.base import applied
from precision_lab.techniques.float32 import Float32

MENDED = Float32(sites=("time_text_embed.time_proj",))
"""What conf/technique/fp32_frequencies.yaml describes."""

NARROW = TransformerConfig(num_attention_heads=2, joint_attention_dim=64)
"""60 blocks, 256 wide, with the heads of the published width, which mflux's rotary embedding assumes."""

BENCHMARK_SCALE, BENCHMARK_WIDTH = 0.02, 3072
"""The scale of the weights in the benchmark on a GPU, and its width."""


class Inputs(NamedTuple):
    """Latents (1, L, C) and text (1, T, J), bfloat16, and the grid of the image tokens."""

    latents: mx.array
    text: mx.array
    grid: Grid


Forward = Callable[[float], np.ndarray]
"""The velocity at a timestep in [0, 1], as fp32."""


def drawn(config: TransformerConfig, seed: int = 0) -> Transformer:
    """A transformer in bfloat16 with the weights of the benchmark on a GPU: normal, scales of norms 1.

    The scale of a weight is the benchmark's at its width, and grows as the width falls, so that products have the same
    gain.
    """
    model = Transformer(config)
    scale = BENCHMARK_SCALE * (BENCHMARK_WIDTH / config.dim) ** 0.5
    parameters = dict(tree_flatten(model.parameters()))
    keys = mx.random.split(mx.random.key(seed), len(parameters))
    weights = []
    for key, (name, array) in zip(keys, parameters.items(), strict=True):
        if "norm" in name and "linear" not in name:
            weights.append((name, mx.ones(array.shape, mx.bfloat16)))
        else:
            width = BENCHMARK_SCALE if array.ndim == 1 else scale
            weights.append((name, mx.random.normal(array.shape, mx.bfloat16, scale=width, key=key)))
    model.load_weights(weights)
    mx.eval(model.parameters())
    return model


def inputs_of(config: TransformerConfig, side: int, text_tokens: int, seed: int = 1) -> Inputs:
    """Unit normal latents and text for a picture of `side` pixels."""
    cells = side // 16
    keys = mx.random.split(mx.random.key(seed), 2)
    latents = mx.random.normal((1, cells * cells, config.in_channels), mx.bfloat16, key=keys[0])
    text = mx.random.normal((1, text_tokens, config.joint_attention_dim), mx.bfloat16, key=keys[1])
    return Inputs(latents, text, Grid(cells, cells))


def first_blocks(model: Transformer, depth: int) -> Transformer:
    """A replica with the first `depth` blocks."""
    shallow: Transformer = replica(model)
    shallow.transformer_blocks = shallow.transformer_blocks[:depth]
    return shallow


@contextmanager
def arms(model: Transformer, config: TransformerConfig, inputs: Inputs) -> Iterator[Mapping[str, Forward]]:
    """The arms by name, "reference" among them. model: in bfloat16."""
    wide: Transformer = replica(model)
    wide.set_dtype(mx.float32)
    theirs, mended = adapted(model, config), adapted(model, config)
    with applied({"transformer": mended}, {"mended": MENDED}):
        found = {
            "reference": _of(wide, inputs, mx.float32),
            "ours": _of(model, inputs, mx.bfloat16),
            "mflux": _of(theirs, inputs, mx.bfloat16),
            "mflux, mended": _of(mended, inputs, mx.bfloat16),
        }
        peer = _diffusers(model, config, inputs)
        yield found | ({"diffusers": peer} if peer else {})


def _of(model: Any, inputs: Inputs, dtype: mx.Dtype) -> Forward:
    latents, text = inputs.latents.astype(dtype), inputs.text.astype(dtype)

    def forward(timestep: float) -> np.ndarray:
        out = model(latents, mx.array([timestep], mx.float32), text, inputs.grid).astype(mx.float32)
        mx.eval(out)
        return np.array(to_numpy(out))

    return forward


def _diffusers(model: Transformer, config: TransformerConfig, inputs: Inputs) -> Forward | None:
    try:
        import torch
        from diffusers import QwenImageTransformer2DModel
    except (ImportError, RuntimeError) as error:  # diffusers wraps what goes wrong in its own imports
        print(f"without diffusers: {error}")
        return None

    def tensor(array: mx.array) -> Any:
        return torch.from_numpy(np.array(to_numpy(array.astype(mx.float32)))).to(torch.bfloat16)

    peer = QwenImageTransformer2DModel(
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=1,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        joint_attention_dim=config.joint_attention_dim,
        axes_dims_rope=config.axes_dims_rope,
    )
    block = peer.transformer_blocks[0]
    peer.transformer_blocks.extend(deepcopy(block) for _ in model.transformer_blocks[1:])
    weights = {name: tensor(array) for name, array in tree_flatten(model.parameters())}
    peer.load_state_dict(weights, strict=True, assign=True)
    latents, text = tensor(inputs.latents), tensor(inputs.text)
    shape = [[(1, inputs.grid.height, inputs.grid.width)]]

    @torch.no_grad()
    def forward(timestep: float) -> np.ndarray:
        given = torch.tensor([timestep], dtype=torch.float32).to(torch.bfloat16)
        out = peer(
            hidden_states=latents, encoder_hidden_states=text, timestep=given, img_shapes=shape, return_dict=False
        )[0]
        return np.asarray(out.float().numpy())

    return forward
