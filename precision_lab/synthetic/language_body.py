"""Generates the weights of a language body, a conventionally initialised pre-norm decoder, and of a vision tower."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from precision_lab.model.language_body_config import LanguageBodyConfig
from precision_lab.synthetic.activations import SILU_PRODUCT_RMS
from precision_lab.synthetic.tensors import Source, Tensor

BIAS = 0.3
"""Standard deviation of the query, key and value biases, whose outputs have unit size."""


@dataclass(frozen=True)
class Attention:
    """What differs between the bodies: whether q, k and v have biases, and whether each head's q and k have norms."""

    biases: bool
    head_norms: bool


def layer(name: str, config: LanguageBodyConfig, attention: Attention, source: Source) -> Iterator[Tensor]:
    """Yields a layer with queries, keys, values and hidden units of unit size.

    Its two branches together add 1 / num_layers to the variance.
    """
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    branch = (2 * config.num_hidden_layers) ** -0.5
    yield norm(f"{name}.input_layernorm", width, source)
    for part, size in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        tensors = source.linear(f"{name}.self_attn.{part}", size, width, std=width**-0.5, bias=BIAS)
        yield from tensors if attention.biases else (next(tensors),)
    if attention.head_norms:
        yield norm(f"{name}.self_attn.q_norm", config.head_dim, source)
        yield norm(f"{name}.self_attn.k_norm", config.head_dim, source)
    yield source.tensor(f"{name}.self_attn.o_proj.weight", (width, queries), branch * queries**-0.5)
    yield norm(f"{name}.post_attention_layernorm", width, source)
    for part in ("gate_proj", "up_proj"):
        yield source.tensor(f"{name}.mlp.{part}.weight", (inner, width), width**-0.5)
    yield source.tensor(f"{name}.mlp.down_proj.weight", (width, inner), branch / SILU_PRODUCT_RMS * inner**-0.5)


def norm(name: str, width: int, source: Source) -> Tensor:
    """The weight of a norm over `width` channels."""
    return source.tensor(f"{name}.weight", (width,), 0.1, mean=1.0)


def norm_and_bias(name: str, width: int, source: Source) -> Iterator[Tensor]:
    """The weight and the bias of a LayerNorm over `width` channels."""
    yield norm(name, width, source)
    yield source.tensor(f"{name}.bias", (width,), 0.1)


def unit_linear(name: str, out: int, inner: int, source: Source) -> Iterator[Tensor]:
    """A linear of unit gain with a bias, as the vision towers have it."""
    yield from source.linear(name, out, inner, std=inner**-0.5, bias=0.1)


def patches(name: str, out: int, kernel: tuple[int, ...], source: Source) -> Tensor:
    """The weight of the convolution that maps patches (channels, frames, rows, columns) to `out` channels."""
    return source.tensor(f"{name}.weight", (out, *kernel), math.prod(kernel) ** -0.5)
