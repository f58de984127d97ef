"""diffusers' transformer on torch with the same weights."""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np
import torch
from diffusers import QwenImageTransformer2DModel

from experiments.benchmarks.cpu.shapes import TIMESTEP, Shape, inputs, weights


def made(shape: Shape, dtype: torch.dtype) -> QwenImageTransformer2DModel:
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(**asdict(shape.config))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = {name: torch.from_numpy(w).to(dtype) for name, w in weights(shapes).items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    # position tables are not weights, so they are created again outside the meta device
    model.pos_embed = QwenImageTransformer2DModel(**asdict(shape.config) | {"num_layers": 0}).pos_embed
    return model.eval().requires_grad_(False)


def forward(model: QwenImageTransformer2DModel, shape: Shape, dtype: torch.dtype) -> tuple[float, np.ndarray]:
    """Seconds of one forward pass, and its output in fp32."""
    latents, text = (torch.from_numpy(x).to(dtype) for x in inputs(shape))
    with torch.no_grad():
        start = time.perf_counter()
        out = model(
            hidden_states=latents,
            timestep=torch.tensor([TIMESTEP], dtype=dtype),
            encoder_hidden_states=text,
            encoder_hidden_states_mask=None,
            img_shapes=[[(1, shape.side, shape.side)]],
            return_dict=False,
        )[0]
        seconds = time.perf_counter() - start
    return seconds, out.float().numpy()
