"""Typed forms of the published `config.json` files of Qwen-Image-2.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from precision_lab.errors import InputError
from precision_lab.model.config import LARGEST, Config, short
from precision_lab.model.language_body_config import LanguageBodyConfig


@dataclass(frozen=True)
class TransformerConfig(Config):
    """`transformer/config.json` of QwenImage21Transformer2DModel; the defaults are those of the class."""

    counts: ClassVar[tuple[str, ...]] = ("num_layers",)

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = 64
    num_layers: int = 32
    attention_head_dim: int = 128
    num_attention_heads: int = 32
    context_in_dim: int = 4096
    mlp_ratio: int = 3
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    eps: float = 1e-6
    causal_condition: bool = True

    @classmethod
    def check_class(cls, raw: Mapping[str, Any]) -> None:
        name = raw.get("_class_name", "QwenImage21Transformer2DModel")
        if name != "QwenImage21Transformer2DModel":
            raise InputError(f"_class_name is {short(name)}, expected QwenImage21Transformer2DModel")

    def __post_init__(self) -> None:
        axes = self.axes_dims_rope
        if len(axes) != 3 or sum(axes) != self.attention_head_dim or any(d % 2 for d in axes):
            raise InputError(
                f"axes_dims_rope {short(list(axes))} must be three even numbers that add up to "
                f"attention_head_dim {self.attention_head_dim}"
            )
        if self.patch_size != 1:
            raise InputError(f"patch_size is {self.patch_size}, expected 1")
        if not 0 < self.eps < 1:
            raise InputError(f"eps is {self.eps}, expected between 0 and 1")
        if not self.causal_condition:
            raise InputError("causal_condition is false, expected true: the prefix must not depend on the timestep")
        if self.hidden > LARGEST:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} times attention_head_dim {self.attention_head_dim} "
                f"times mlp_ratio {self.mlp_ratio} is {self.hidden} channels, expected at most {LARGEST}"
            )

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """Width of the hidden layer of a feed-forward."""
        return self.mlp_ratio * self.dim

    @property
    def velocity_channels(self) -> int:
        """Channels of the output; those of the input unless `out_channels` says otherwise."""
        return self.out_channels or self.in_channels


_TEXT_MODEL_TYPES = ("qwen3_vl", "qwen3_vl_text")
_TEXT_CLASSES = ("Qwen3VLForConditionalGeneration", "Qwen3VLModel", "Qwen3VLTextModel")


@dataclass(frozen=True)
class TextEncoderConfig(LanguageBodyConfig):
    """The language body of `text_encoder/config.json` (Qwen3VLForConditionalGeneration).

    The default values are those of Qwen/Qwen-Image-2.1.
    """

    qkv_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = True
    final_norm: ClassVar[bool] = False
    class_defaults: ClassVar[Mapping[str, Any]] = {
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rope_theta": 5e5,
    }

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5e6
    hidden_act: str = "silu"
    attention_bias: bool = False

    @classmethod
    def check_class(cls, raw: Mapping[str, Any]) -> None:
        kind = raw.get("model_type", _TEXT_MODEL_TYPES[0])
        if kind not in _TEXT_MODEL_TYPES:
            raise InputError(f"model_type is {short(kind)}, expected {_TEXT_MODEL_TYPES[0]}")
        architectures = raw.get("architectures") or []
        for name in architectures if isinstance(architectures, list) else [architectures]:
            if name not in _TEXT_CLASSES:
                raise InputError(f"architectures names {short(name)}, expected {_TEXT_CLASSES[0]}")

    def __post_init__(self) -> None:
        if self.attention_bias:
            raise InputError("attention_bias is true, expected false")
        super().__post_init__()
