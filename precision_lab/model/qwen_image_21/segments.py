"""Segments of the sequence [prefix, target]: which tokens are in a pass, what they read, how they are modulated.

The block-causal mask of the model lets a query read the keys up to its own, and all keys of its image. It is exactly
one attention call for each segment: a segment reads the keys up to its end, text with a causal triangle over its own.

B batch, P tokens of the prefix, L tokens of the target, N tokens in the pass, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Segment(NamedTuple):
    """Tokens `start` to `end` of the sequence, whose queries read the keys 0 to `end` in one attention call.

    mask: (B or 1, 1, end - start or 1, end), True where a query may read a key, or None.
    """

    start: int
    end: int
    mask: mx.array | None


class Segments(NamedTuple):
    """The segments in a pass: those of the prefix, the target, or all."""

    prefix: tuple[Segment, ...]
    target: Segment | None

    def of(self, segment: Segment, x: mx.array) -> mx.array:
        """The tokens of `segment` among those in the pass; x: (B, N, ...)."""
        first = 0 if self.prefix else segment.start
        return x[:, segment.start - first : segment.end - first]

    def over_tokens(self, rows: mx.array) -> mx.array:
        """The row of each token in the pass, (B or 1, N or 1, D).

        rows: (B, D), one for each sample's target, or (1, D), that of the prefix, or both, (B + 1, D), that of the
        prefix last.
        """
        if not self.prefix or self.target is None:
            return rows[:, None]
        num_samples, dim = rows.shape[0] - 1, rows.shape[1]
        prefix = mx.broadcast_to(rows[-1], (num_samples, self.target.start, dim))
        target = mx.broadcast_to(rows[:-1, None], (num_samples, self.target.end - self.target.start, dim))
        return mx.concatenate([prefix, target], axis=1)


def text_segment(num_text: int, mask: mx.array | None) -> Segment:
    """A prompt at the beginning of the sequence. mask: (B, T), non-zero for tokens that are not padding, or None.

    No other token reads padding. A padding token reads itself, so that its softmax is over at least one key.
    """
    causal = mx.tri(num_text, dtype=mx.bool_)[None, None]
    if mask is None:
        return Segment(0, num_text, causal)
    readable = mask.astype(mx.bool_)[:, None, None, :] | mx.eye(num_text, dtype=mx.bool_)[None, None]
    return Segment(0, num_text, causal & readable)


def target_segment(num_text: int, num_target: int, mask: mx.array | None) -> Segment:
    """The target after a prompt of `num_text` tokens; it reads all tokens but padding. mask: as in `text_segment`."""
    end = num_text + num_target
    if mask is None:
        return Segment(num_text, end, None)
    readable = mx.concatenate([mask.astype(mx.bool_), mx.ones((mask.shape[0], num_target), mx.bool_)], axis=1)
    return Segment(num_text, end, readable[:, None, None, :])
