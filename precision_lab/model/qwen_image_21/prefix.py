"""What the prefix of a sequence leaves for the steps: keys and values of every block.

Tokens of the prefix are modulated with t = 0 and read no token of the target. Their keys and values therefore do not
depend on the step, and are computed once for a prompt.

B batch, P tokens of the prefix, N tokens of a pass, D width, H heads, C channels a head.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class KeysValues(NamedTuple):
    """Keys, rotated to their positions, and values of the prefix in one block: (B, P, H, C) each."""

    keys: mx.array
    values: mx.array


class Prefix(NamedTuple):
    """Keys and values of the prefix in each block, in order."""

    blocks: tuple[KeysValues, ...]

    @property
    def num_tokens(self) -> int:
        """P, padding included."""
        return self.blocks[0].keys.shape[1]

    def kept_in(self, dtype: mx.Dtype) -> Prefix:
        """The prefix rounded to `dtype`; attention uses it in the dtype of its queries."""
        return Prefix(tuple(KeysValues(keys.astype(dtype), values.astype(dtype)) for keys, values in self.blocks))


class Output(NamedTuple):
    """The result (B, N, D) of an attention or a block, and the keys and values to keep, in a pass of the prefix."""

    img: mx.array
    kept: KeysValues | None = None
