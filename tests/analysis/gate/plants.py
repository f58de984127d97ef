"""Mistakes to plant in the model, in memory: the checkpoint and its fingerprint stay what they are.

Each is a function that takes pytest's monkeypatch and makes the mistake for the length of a test.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from precision_lab.model import modulation, rotary
from precision_lab.model.layers import GELUTanh, LayerNorm
from precision_lab.model.qwen_image import block, rope, transformer
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.pipeline import Pipeline
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.model.text_to_image import sampler, settings
from precision_lab.techniques.float32 import InFloat32

Patch = pytest.MonkeyPatch


def in_loaded(patch: Patch, change: Callable[[Pipeline], None]) -> None:
    """Every pipeline is changed as soon as it is assembled, once if two of them share their transformer."""
    assemble = Checkpoint.assembled
    changed: list[nn.Module] = []

    def assembled(self: Checkpoint, *components: Any) -> Pipeline:
        found = assemble(self, *components)
        if not any(found.transformer is transformer for transformer in changed):
            changed.append(found.transformer)
            change(found)
        return found

    patch.setattr(Checkpoint, "assembled", assembled)


def at(patch: Patch, path: str, call: Callable[..., Any]) -> None:
    """The transformer's module at `path` computes `call(plain, *arguments)`, plain being what it computed before."""

    def change(loaded: Pipeline) -> None:
        module: Any = loaded.transformer
        for name in path.split("."):
            module = module[int(name)] if isinstance(module, list) else getattr(module, name, None) or module[name]
        original = type(module)

        def mistaken(self: nn.Module, *arguments: Any) -> Any:
            return call(lambda *given: original.__call__(self, *given), *arguments)

        module.__class__ = type(original.__name__, (original,), {"__call__": mistaken})

    in_loaded(patch, change)


def weight_times(factor: float, path: str = "transformer_blocks.2.img_mlp.net.0.proj") -> Callable[[Patch], None]:
    """A single element of a weight matrix, in the middle of it, is multiplied."""

    def plant(patch: Patch) -> None:
        def change(loaded: Pipeline) -> None:
            module: Any = loaded.transformer
            for name in path.split("."):
                module = module[int(name)] if isinstance(module, list) else getattr(module, name, None) or module[name]
            rows, columns = module.weight.shape
            scale = np.ones((rows, columns), np.float32)
            scale[rows // 2, columns // 2] = factor
            module.weight = (module.weight.astype(mx.float32) * mx.array(scale)).astype(module.weight.dtype)

        in_loaded(patch, change)

    return plant


def norm_out_upcast_removed(patch: Patch) -> None:
    """The technique fp32_norm_out casts nothing any more."""
    patch.setattr(InFloat32, "__call__", lambda self, *args, **kwargs: self.inner(*args, **kwargs))


def promoted(site: str) -> Callable[[Patch], None]:
    """One module forgets to round to the dtype of its input."""
    return lambda patch: at(patch, site, lambda plain, x: plain(x.astype(mx.float32)))


def rope_off_by_one_on_odd_grids(patch: Patch) -> None:
    """Rows and columns are centred with the smaller half first: the same on even grids, one off on odd ones."""

    def rotations(axes_dims: tuple[int, ...], grid: rotary.Grid, num_text: int) -> Streams:
        rows, columns = (np.arange(n) - n // 2 for n in grid)
        image = np.stack(np.meshgrid([0], rows, columns, indexing="ij"), axis=-1).reshape(-1, 3)
        return Streams(img=rotary.rotation(image, axes_dims), txt=plain(axes_dims, grid, num_text).txt)

    plain = rope.rotations
    patch.setattr(rope, "rotations", rotations)


def norm_out_without_bias(patch: Patch) -> None:
    """The bias of norm_out's linear is forgotten."""
    in_loaded(patch, lambda loaded: loaded.transformer.norm_out.linear.pop("bias"))


def rms_norm_for_layer_norm(patch: Patch) -> None:
    """The mean is not subtracted."""
    patch.setattr(LayerNorm, "__call__", lambda self, x: mx.fast.rms_norm(x, None, self.eps))


def gate_times(factor: float | None = None, path: str = "transformer_blocks.1.img_add2") -> Callable[[Patch], None]:
    """A gate is multiplied by a number, or, without one, once more by itself."""

    def plant(patch: Patch) -> None:
        at(patch, path, lambda plain, x, gate, update: plain(x, gate * (gate if factor is None else factor), update))

    return plant


def nan_in_one_token(patch: Patch) -> None:
    """The last text token of one feed-forward is not a number."""

    def call(plain: Callable[..., mx.array], x: mx.array) -> mx.array:
        y = plain(x)
        return mx.concatenate([y[:, :-1], mx.full(y[:, -1:].shape, float("nan"), y.dtype)], axis=1)

    at(patch, "transformer_blocks.3.txt_mlp.net.2", call)


def terminal_stretch_removed(patch: Patch) -> None:
    """The last sigma is not stretched to shift_terminal."""
    plain = settings.sigmas

    def sigmas(config: Any, steps: int, num_tokens: int, asked: Any = None) -> np.ndarray:
        return plain(replace(config, shift_terminal=None), steps, num_tokens, asked)

    patch.setattr(settings, "sigmas", sigmas)


def timestep_in_bfloat16(patch: Patch) -> None:
    """The timestep is rounded to bf16 in every dtype."""
    plain = sampler.Timestep.__call__
    patch.setattr(
        sampler.Timestep, "__call__", lambda self, sigma, dtype: plain(self, sigma, mx.bfloat16).astype(dtype)
    )


def timestep_in_bfloat16_inside(patch: Patch) -> None:
    """The same, made inside the transformer: the site `pipeline:timestep` does not see it."""
    plain = transformer.TimeTextEmbedding.__call__

    def call(self: nn.Module, timestep: mx.array, dtype: mx.Dtype) -> mx.array:
        return plain(self, timestep.astype(mx.bfloat16), dtype)

    patch.setattr(transformer.TimeTextEmbedding, "__call__", call)


def site_gone(patch: Patch) -> None:
    """A modulation is computed as before, and is no module any more."""

    def change(loaded: Pipeline) -> None:
        modulate = block.Modulate()
        loaded.transformer.transformer_blocks[2].img_modulate2 = lambda *arguments: modulate(*arguments)

    in_loaded(patch, change)


def gelu_in_16_bits(patch: Patch) -> None:
    """GELU is no longer evaluated in fp32; the fp32 reference is the same."""

    def gelu(self: GELUTanh, x: mx.array) -> mx.array:
        return 0.5 * x * (1 + mx.tanh(0.7978845608 * (x + 0.044715 * (x * x * x))))

    patch.setattr(GELUTanh, "__call__", gelu)


def gated_add_rounded_once(patch: Patch) -> None:
    """`residual + gate * update` is evaluated in fp32; the fp32 reference is the same."""

    def add(self: modulation.GatedAdd, residual: mx.array, gate: mx.array, update: mx.array) -> mx.array:
        wide = [x.astype(mx.float32) for x in (residual, gate[:, None], update)]
        return (wide[0] + wide[1] * wide[2]).astype(residual.dtype)

    patch.setattr(modulation.GatedAdd, "__call__", add)


def another_eps_of_one_norm(patch: Patch) -> None:
    in_loaded(patch, lambda loaded: setattr(loaded.transformer.transformer_blocks[2].attn.norm_added_k, "eps", 1e-5))


def mask_dropped(patch: Patch) -> None:
    """The image may read the padding of the text."""
    patch.setattr(transformer, "_joint_mask", lambda *_: None)
