"""The transformer of diffusers as an oracle: random models and inputs, and one forward pass in both libraries."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
import torch
from diffusers import QwenImageTransformer2DModel

from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid

TORCH = {mx.float32: torch.float32, mx.bfloat16: torch.bfloat16, mx.float16: torch.float16}


class Inputs(NamedTuple):
    """Arguments of a forward pass, fp32: (B, L, 64), (B,), (B, T, J), and (B, T) or None."""

    latents: np.ndarray
    timestep: np.ndarray
    text: np.ndarray
    grid: Grid
    mask: np.ndarray | None = None


def random_transformer(seed, layers, heads=2, axes=(8, 12, 12), text_width=48) -> QwenImageTransformer2DModel:
    """A model in which all weights matter: unit gain, biases, and norms that are not the identity."""
    model = QwenImageTransformer2DModel(
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=sum(axes),
        axes_dims_rope=axes,
        joint_attention_dim=text_width,
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(generator=generator)
            if "norm" in name and p.ndim == 1 and name.endswith("weight"):
                p.mul_(0.3).add_(1)
            else:
                p.mul_(0.3 if p.ndim == 1 else p.shape[-1] ** -0.5)
    return model


def random_inputs(rng, grid, batch=1, tokens=11, text_width=48, timestep=None, lengths=None) -> Inputs:
    """Unit normal latents and text; `lengths` adds a mask of right padding, `timestep` sets one value for the batch."""
    times = rng.uniform(0.02, 1, batch) if timestep is None else np.full(batch, timestep)
    return Inputs(
        latents=rng.standard_normal((batch, grid[0] * grid[1], 64), dtype=np.float32),
        timestep=times.astype(np.float32),
        text=rng.standard_normal((batch, tokens, text_width), dtype=np.float32),
        grid=Grid(*grid),
        mask=None if lengths is None else (np.arange(tokens) < np.array(lengths)[:, None]).astype(np.float32),
    )


def copy_of(model: QwenImageTransformer2DModel) -> Transformer:
    """Our transformer with the configuration, the weights and the dtype of `model`."""
    config, _ = TransformerConfig.from_dict(model.config)
    transformer = Transformer(config)
    dtype = next(mlx for mlx, torch_dtype in TORCH.items() if torch_dtype == model.dtype)
    tensors = [(name, mx.array(p.float().numpy()).astype(dtype)) for name, p in model.state_dict().items()]
    transformer.load_weights(tensors, strict=True)
    return transformer


def rounded(inputs: Inputs, dtype: mx.Dtype) -> Inputs:
    """`inputs`, rounded to values that `dtype` represents."""
    arrays = (torch.from_numpy(a).to(TORCH[dtype]).float().numpy() for a in inputs[:3])
    return Inputs(*arrays, *inputs[3:])


def reference(model: QwenImageTransformer2DModel, inputs: Inputs) -> np.ndarray:
    """The output of `model` of diffusers, computed in its own dtype, as float64."""
    latents, timestep, text = (torch.from_numpy(a).to(model.dtype) for a in inputs[:3])
    with torch.no_grad():
        out = model(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=None if inputs.mask is None else torch.from_numpy(inputs.mask),
            img_shapes=[[(1, *inputs.grid)]] * len(latents),
            return_dict=False,
        )[0]
    return out.double().numpy()


def ours(transformer: Transformer, inputs: Inputs, dtype: mx.Dtype = mx.float32) -> np.ndarray:
    """The output of our transformer, computed in `dtype`, as float64."""
    latents, timestep, text = (mx.array(a).astype(dtype) for a in inputs[:3])
    out = transformer(latents, timestep, text, inputs.grid, None if inputs.mask is None else mx.array(inputs.mask))
    assert out.dtype == dtype
    return np.array(out.astype(mx.float32)).astype(np.float64)


def relative_l2(result: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))
