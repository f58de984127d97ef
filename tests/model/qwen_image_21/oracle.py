"""The transformer of diffusers as an oracle: random models and inputs, and forward passes in both libraries."""

import copy
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache, QwenImage21Transformer2DModel

from precision_lab.model.qwen_image_21.config import TransformerConfig
from precision_lab.model.qwen_image_21.transformer import Transformer
from precision_lab.model.rotary import Grid
from tests.model.oracle import TORCH

CHANNELS = 64


class Shape(NamedTuple):
    """The sizes of a random transformer."""

    layers: int
    heads: int = 2
    axes: tuple[int, int, int] = (8, 12, 12)
    text_width: int = 48
    mlp_ratio: int = 3


class Inputs(NamedTuple):
    """Arguments of a forward pass, fp32: (B, L, CHANNELS), (B,), (B, T, J), and (B, T) or None."""

    latents: np.ndarray
    timestep: np.ndarray
    text: np.ndarray
    grid: Grid
    mask: np.ndarray | None = None


def random_shape(rng, layers: int) -> Shape:
    """Heads of 8 to 64 channels, divided among the axes at random."""
    axes = tuple(int(n) for n in 2 * rng.integers(1, 10, 3))
    heads, text, ratio = (int(rng.integers(*bounds)) for bounds in ((1, 6), (9, 70), (1, 5)))
    return Shape(layers, heads, axes, text, ratio)


def random_transformer(seed: int, shape: Shape, eps: float = 1e-6) -> QwenImage21Transformer2DModel:
    """A model in which all weights matter: unit gain, and norms that are not the identity."""
    model = QwenImage21Transformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=shape.layers,
        num_attention_heads=shape.heads,
        attention_head_dim=sum(shape.axes),
        axes_dims_rope=shape.axes,
        context_in_dim=shape.text_width,
        mlp_ratio=shape.mlp_ratio,
        eps=eps,
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(generator=generator)
            if p.ndim == 1:
                p.mul_(0.3).add_(0 if name.endswith("text_norm.weight") else 1)
            else:
                p.mul_(p.shape[-1] ** -0.5)
    return model


def in_dtype(model: QwenImage21Transformer2DModel, dtype: torch.dtype) -> QwenImage21Transformer2DModel:
    """A copy of `model` as `from_pretrained(torch_dtype=dtype)` gives it: the table of frequencies stays fp32.

    `model.to(dtype)` would round the table, whose arguments reach 1000 rad: some 10 % of the output in bfloat16.
    """
    converted = copy.deepcopy(model).to(dtype)
    converted.time_text_embed.time_proj.freqs = model.time_text_embed.time_proj.freqs.clone()
    return converted


def random_inputs(rng, grid, shape: Shape, batch=1, tokens=11, timestep=None, lengths=None) -> Inputs:
    """Unit normal latents and text; `lengths` adds a mask of right padding, `timestep` sets one value for the batch."""
    times = rng.uniform(0.02, 1, batch) if timestep is None else np.full(batch, timestep)
    return Inputs(
        latents=rng.standard_normal((batch, grid[0] * grid[1], CHANNELS), dtype=np.float32),
        timestep=times.astype(np.float32),
        text=rng.standard_normal((batch, tokens, shape.text_width), dtype=np.float32),
        grid=Grid(*grid),
        mask=None if lengths is None else (np.arange(tokens) < np.array(lengths)[:, None]).astype(np.float32),
    )


def rounded(inputs: Inputs, dtype: mx.Dtype) -> Inputs:
    """`inputs`, rounded to values that `dtype` represents."""
    arrays = (torch.from_numpy(a).to(TORCH[dtype]).float().numpy() for a in inputs[:3])
    return Inputs(*arrays, *inputs[3:])


def copy_of(model: QwenImage21Transformer2DModel) -> Transformer:
    """Our transformer with the configuration, the weights and the dtype of `model`."""
    config, _ = TransformerConfig.from_dict(model.config)
    transformer = Transformer(config)
    dtype = next(mlx for mlx, torch_dtype in TORCH.items() if torch_dtype == model.dtype)
    tensors = [(name, mx.array(p.float().numpy()).astype(dtype)) for name, p in model.state_dict().items()]
    transformer.load_weights(tensors, strict=True)
    return transformer


def reference(model: QwenImage21Transformer2DModel, inputs: Inputs, cache=None, mode=None) -> np.ndarray:
    """The velocity of the target of `model` of diffusers, computed in its own dtype, as float64."""
    latents, timestep, text = (torch.from_numpy(a).to(model.dtype) for a in inputs[:3])
    batch, num_target = latents.shape[:2]
    slots = torch.zeros(batch, text.shape[1] + num_target // 4, dtype=torch.bool)
    slots[:, text.shape[1] :] = True
    with torch.no_grad():
        out = model(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=None if inputs.mask is None else torch.from_numpy(inputs.mask),
            img_shapes=[[(1, *inputs.grid)]] * batch,
            img_mask=slots,
            kv_cache=cache,
            kv_cache_mode=mode,
            return_dict=False,
        )[0]
    return out[:, -num_target:].double().numpy()


def composed(model: QwenImage21Transformer2DModel, inputs: Inputs) -> np.ndarray:
    """The velocity from the modules of `model` in fp32, for a target of any number of tokens, without padding."""
    latents, timestep, text = map(torch.from_numpy, inputs[:3])
    num_text, num_target = text.shape[1], latents.shape[1]
    is_target = torch.arange(num_text + num_target) >= num_text
    with torch.no_grad():
        x = torch.cat([model.txt_in(text), model.img_in(latents)], dim=1)
        temb = model.time_text_embed(torch.cat([timestep, torch.zeros(1)]), x)
        modulation = model.modulation(temb)
        rotation = model.pos_embed([(1, *inputs.grid)], is_target, x.device)
        for block in model.transformer_blocks:
            x = block(x, modulation, rotation, target_token_mask=is_target, segments=[(0, num_text, True)])
        out = model.proj_out(model.norm_out(x, temb, is_target))
    return out[:, num_text:].double().numpy()


def new_cache(model: QwenImage21Transformer2DModel) -> QwenImage21KVCache:
    return QwenImage21KVCache(len(model.transformer_blocks))


def arrays_of(inputs: Inputs, dtype: mx.Dtype = mx.float32) -> tuple:
    """The arguments of our transformer without a prefix."""
    latents, timestep, text = (mx.array(a).astype(dtype) for a in inputs[:3])
    return latents, timestep, text, inputs.grid, None if inputs.mask is None else mx.array(inputs.mask)


def ours(transformer: Transformer, inputs: Inputs, dtype: mx.Dtype = mx.float32, cached: bool = False) -> np.ndarray:
    """The output of our transformer, computed in `dtype`, as float64; in one pass, or after a pass of the prefix."""
    latents, timestep, text, grid, mask = arrays_of(inputs, dtype)
    prefix = transformer.prefill(text, mask) if cached else None
    out = transformer(latents, timestep, text, grid, mask, prefix)
    assert out.dtype == dtype
    return np.array(out.astype(mx.float32)).astype(np.float64)
