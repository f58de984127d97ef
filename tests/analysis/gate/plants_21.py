"""Mistakes to plant in Qwen-Image-2.1, in memory; see `plants`."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.model import rotary
from precision_lab.model.layers import Tanh
from precision_lab.model.qwen_image_21 import rope, transformer
from precision_lab.model.qwen_image_21.segments import Segment, Segments
from precision_lab.model.qwen_image_21.text_encoder import TextEncoder
from precision_lab.model.qwen_image_21.transformer import Transformer, ZeroCentredRMSNorm

Patch = pytest.MonkeyPatch


def text_reads_ahead(patch: Patch) -> None:
    """The triangle of the text's segment is one key too wide."""
    plain = transformer.text_segment

    def wider(num_text: int, mask: mx.array | None) -> Segment:
        segment = plain(num_text, mask)
        ahead = mx.tri(num_text, k=1, dtype=mx.bool_)[None, None]
        return segment._replace(mask=ahead if mask is None else ahead & mask.astype(mx.bool_)[:, None, None, :])

    patch.setattr(transformer, "text_segment", wider)


def target_begins_late(patch: Patch) -> None:
    """The target reads no key of the last text token."""
    plain = transformer.target_segment

    def late(num_text: int, num_target: int, mask: mx.array | None) -> Segment:
        readable = mx.arange(num_text + num_target) != num_text - 1
        return plain(num_text, num_target, mask)._replace(mask=readable[None, None, None])

    patch.setattr(transformer, "target_segment", late)


def prefix_of_another_step(patch: Patch) -> None:
    """Keys and values are computed with t = 1, as those of the first step, not with t = 0."""
    plain = transformer.TimeTextEmbedding.__call__

    def one(self: transformer.TimeTextEmbedding, timestep: mx.array, dtype: mx.Dtype) -> mx.array:
        return plain(self, mx.where(timestep == 0, 1.0, timestep).astype(timestep.dtype), dtype)

    patch.setattr(transformer.TimeTextEmbedding, "__call__", one)


def target_modulated_as_text(patch: Patch) -> None:
    """In a pass of both, tokens of the target get the row of t = 0 too."""
    plain = Segments.over_tokens

    def last_row(self: Segments, rows: mx.array) -> mx.array:
        both = self.prefix and self.target is not None
        return plain(self, mx.broadcast_to(rows[-1:], rows.shape) if both else rows)

    patch.setattr(Segments, "over_tokens", last_row)


def gate_without_tanh(patch: Patch) -> None:
    """Gates are not bounded."""
    patch.setattr(Tanh, "__call__", lambda self, x: x)


def norm_weight_without_one(patch: Patch) -> None:
    """The norm of the text is scaled by its stored weight, not by that and 1."""
    plain = ZeroCentredRMSNorm.__call__

    def scaled(self: ZeroCentredRMSNorm, x: mx.array) -> mx.array:
        weight = self.weight.astype(mx.float32)
        return (plain(self, x).astype(mx.float32) * weight / (weight + 1)).astype(x.dtype)

    patch.setattr(ZeroCentredRMSNorm, "__call__", scaled)


def rope_centre_off_by_one(patch: Patch) -> None:
    """Rows and columns begin one later."""

    def moved(axes_dims: tuple[int, ...], num_text: int, grid: rotary.Grid | None) -> mx.array:
        positions = rotary.diagonal(0, num_text)
        if grid is not None:
            positions = np.concatenate([positions, rotary.centred(grid, frame=num_text) + np.array([0, 1, 1])])
        return rotary.rotation(positions, axes_dims)

    patch.setattr(rope, "rotations", moved)


def text_with_final_norm(patch: Patch) -> None:
    """The text encoder applies its final RMSNorm, as transformers 5 returns hidden states."""
    plain = TextEncoder.__call__
    weight = mx.array(np.random.default_rng(0).uniform(0.5, 2, 4096).astype(np.float32))

    def normed(self: TextEncoder, ids: mx.array, mask: mx.array | None, dtype: mx.Dtype) -> mx.array:
        x = plain(self, ids, mask, dtype)
        return mx.fast.rms_norm(x, weight[: x.shape[-1]].astype(x.dtype), 1e-6)

    patch.setattr(TextEncoder, "__call__", normed)


def prefix_of_the_image(patch: Patch) -> None:
    """The values of the prefix are used in place of its keys."""
    plain = Transformer.prefill

    def swapped(self: Transformer, text: mx.array, mask: mx.array | None = None) -> object:
        prefix = plain(self, text, mask)
        return prefix._replace(blocks=tuple(block._replace(keys=block.values) for block in prefix.blocks))

    patch.setattr(Transformer, "prefill", swapped)
