"""diffusers' transformer of a shape on torch, eager and with its repeated block compiled, over one set of tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import torch

from experiments.benchmarks.gpu.shapes import PIXELS_A_TOKEN, Shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and find_spec("torchvision"):
    import tests.torchvision_operators  # noqa: F401 - before diffusers, which imports it through transformers

WEIGHT_SCALE = 0.02
"""The scale of our weights. torch draws its own, because 41 GB are not copied between the libraries."""


class Inputs(NamedTuple):
    """Latents (1, L, in_channels), text (1, T, J), and the side in pixels."""

    latents: torch.Tensor
    text: torch.Tensor
    side: int

    @property
    def cells(self) -> int:
        """The tokens along one side."""
        return self.side // PIXELS_A_TOKEN


Forward = Callable[[Inputs, float], torch.Tensor]
"""The velocity of the latents at a timestep in [0, 1], (1, L, out_channels)."""


class Peer(Protocol):
    """What `diffusers_peer` of an architecture has."""

    Transformer: Any
    """The class, built from the fields of a config."""
    PASSES: Mapping[str, Callable[[Any, Any], Forward]]
    """As `PASSES` of `mlx_model.Ours`, each made of a model and a model of the same tensors that sets it up."""


def built(shape: Shape, dtype: torch.dtype) -> Any:
    """The model, created directly in `dtype`: it would not fit in fp32."""
    known = asdict(shape.config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(DEVICE):
            model = shape.module("diffusers_peer").Transformer(**known)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def made(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Any:
    """A model with random weights: linears and biases are normal * 0.02, norms scale by 1."""
    model = built(shape, dtype)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.normal_(0, WEIGHT_SCALE, generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, WEIGHT_SCALE, generator=generator)
    return model


def compiled_copy(shape: Shape, model: Any) -> Any:
    """Another model that shares the tensors, with its block compiled separately for each size.

    By default torch would compile the second size for all sizes, which is slower.
    """
    with torch.device("meta"):
        duplicate = shape.module("diffusers_peer").Transformer(
            **{k: v for k, v in model.config.items() if not k.startswith("_")}
        )
    duplicate.load_state_dict(model.state_dict(), strict=True, assign=True)
    duplicate.pos_embed = model.pos_embed  # its tables are not parameters
    duplicate.time_text_embed = model.time_text_embed  # nor are frequencies
    duplicate = duplicate.eval().requires_grad_(False)
    duplicate.compile_repeated_blocks(dynamic=False)
    return duplicate


def made_inputs(shape: Shape, side: int, dtype: torch.dtype, seed: int = 1) -> Inputs:
    """Unit normal latents and text."""
    generator = torch.Generator(DEVICE).manual_seed(seed + side)
    sizes = (shape.tokens(side), shape.config.in_channels), (shape.text_tokens, shape.text_width)
    latents, text = (torch.randn(1, *s, generator=generator, device=DEVICE).to(dtype) for s in sizes)
    return Inputs(latents, text, side)


def times(timestep: float) -> torch.Tensor:
    """The timestep of the sample, (1,)."""
    return torch.full((1,), timestep, device=DEVICE)


def forwards(shape: Shape, models: Mapping[str, Any], eager: Any) -> dict[str, Forward]:
    """Every pass of the models, by the name of the arm; `eager` has their tensors."""
    passes = shape.module("diffusers_peer").PASSES
    return {
        f"{name}{suffix}": torch.no_grad()(of(model, eager))
        for name, model in models.items()
        for suffix, of in passes.items()
    }


def seconds_of(forward: Forward, inputs: Inputs, timestep: float) -> float:
    """Wall-clock seconds from the call until the device is done."""
    synchronize()
    start = time.perf_counter()
    forward(inputs, timestep)
    synchronize()
    return time.perf_counter() - start


def peak_gigabytes(forward: Forward, inputs: Inputs, timestep: float) -> float | None:
    """Peak memory of a forward after two others, including weights, in GB (1e9 bytes). None on a CPU."""
    for _ in range(2):
        seconds_of(forward, inputs, timestep)
    if DEVICE == "cpu":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds_of(forward, inputs, timestep)
    return torch.cuda.max_memory_allocated() / 1e9


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def environment() -> Mapping[str, Any]:
    import diffusers

    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
