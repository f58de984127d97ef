"""Typed forms of the published `config.json` files of Qwen-Image-2.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

from precision_lab.errors import InputError
from precision_lab.model.autoencoder_config import AutoencoderConfig
from precision_lab.model.config import LARGEST, check_axes, short
from precision_lab.model.language_body_config import LanguageBodyConfig
from precision_lab.model.qwen_image_21.kinds import KINDS
from precision_lab.model.text_to_image.component import ComponentConfig
from precision_lab.model.text_to_image.kinds import Kinds


@dataclass(frozen=True)
class TransformerConfig(ComponentConfig):
    """`transformer/config.json` of QwenImage21Transformer2DModel; the defaults are those of the class."""

    kinds: ClassVar[Kinds] = KINDS
    part: ClassVar[str] = "transformer"
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

    def __post_init__(self) -> None:
        check_axes(self.axes_dims_rope, self.attention_head_dim)
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


@dataclass(frozen=True)
class TextEncoderConfig(LanguageBodyConfig, ComponentConfig):
    """The language body of `text_encoder/config.json` (Qwen3VLForConditionalGeneration).

    The default values are those of Qwen/Qwen-Image-2.1.
    """

    kinds: ClassVar[Kinds] = KINDS
    part: ClassVar[str] = "text_encoder"
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

    def __post_init__(self) -> None:
        if self.attention_bias:
            raise InputError("attention_bias is true, expected false")
        super().__post_init__()


class Stage(NamedTuple):
    """A stage of the encoder or the decoder: the channels before and after it, and the factors that it changes.

    space: 2 if it halves or doubles both sides, else 1. time: 2 if it halves or doubles a video's frames, else 1.
    """

    in_dim: int
    out_dim: int
    space: int
    time: int


@dataclass(frozen=True)
class VAEConfig(AutoencoderConfig, ComponentConfig):
    """`vae/config.json` of AutoencoderKLQwenImage21; the defaults are those of the class."""

    kinds: ClassVar[Kinds] = KINDS
    part: ClassVar[str] = "vae"
    counts: ClassVar[tuple[str, ...]] = ("num_res_blocks",)

    base_dim: int = 96
    decoder_base_dim: int | None = 144
    z_dim: int = 64
    dim_mult: tuple[int, ...] = (1, 2, 4, 8, 8)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True, True)
    is_residual: bool = True
    in_channels: int = 4
    out_channels: int = 4
    patch_size: int | None = None
    latents_mean: tuple[float, ...] = (
        *(0.5126, 0.7721, -0.0631, 1.3506, -0.7855, -2.1025, -0.3458, 1.3722),
        *(1.8873, -1.7177, -0.651, 0.2732, 0.7562, -0.6163, -1.0277, 3.8363),
        *(2.021, 0.0472, 0.932, 2.0087, 2.4954, -0.1391, -1.4249, 1.8464),
        *(-0.5236, 1.2826, 3.7046, -1.3035, 2.7286, -1.4518, -1.9036, -1.9955),
        *(-0.0342, -1.0265, -0.7636, 3.0555, 0.0746, -3.0751, -0.1076, 1.7376),
        *(-1.0914, -1.9435, -0.2784, -1.368, 0.4809, -0.4433, 0.3764, 0.5729),
        *(-2.0595, 1.096, -1.326, -2.0211, -5.0179, 0.5275, 4.0162, 1.8505),
        *(0.3026, 1.9373, 1.4937, 0.2632, 0.5547, -1.7121, -0.1562, 0.0304),
    )
    latents_std: tuple[float, ...] = (
        *(3.2001, 3.2936, 3.4321, 3.0091, 3.1061, 4.0379, 4.0705, 3.791),
        *(3.0785, 3.65, 3.9308, 3.0904, 2.8778, 3.7675, 3.732, 5.0756),
        *(3.2864, 4.0397, 3.1317, 4.0443, 2.9249, 3.9454, 3.0988, 4.2489),
        *(3.4896, 3.8513, 3.9323, 3.4719, 3.7498, 4.283, 3.5694, 4.2467),
        *(3.9037, 3.2947, 5.077, 3.5075, 3.27, 3.4767, 2.8063, 5.1125),
        *(3.5327, 4.7833, 3.1286, 4.1819, 3.8527, 3.8312, 3.5605, 4.3875),
        *(3.9624, 4.0168, 3.5643, 4.055, 5.5614, 4.2963, 4.408, 3.4959),
        *(3.8747, 3.7608, 3.5735, 3.149, 3.7662, 3.6746, 3.4563, 3.8161),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_residual:
            raise InputError(
                "is_residual is false, expected true: stages without shortcuts are those of Qwen-Image 1.x"
            )
        if self.decoder_base_dim is not None:
            self.check_width("decoder_base_dim", self.decoder_base_dim)
        for key in ("in_channels", "out_channels"):
            if getattr(self, key) % self.patch**2:
                raise InputError(
                    f"{key} is {getattr(self, key)}, expected a multiple of patch_size {self.patch} squared"
                )
        for stage in self.down_stages():
            self._check_shortcut(stage, "average", stage.in_dim, stage.out_dim)
        for stage in self.up_stages()[:-1]:
            self._check_shortcut(stage, "repeat", stage.out_dim, stage.in_dim)

    def _check_shortcut(self, stage: Stage, verb: str, fine: int, coarse: int) -> None:
        values = fine * stage.time * stage.space**2
        if values % coarse:
            raise InputError(
                f"dim_mult is {short(list(self.dim_mult))}: the shortcut of a stage cannot {verb} {stage.in_dim} "
                f"channels to {stage.out_dim}, because {coarse} does not divide {values}"
            )

    def down_stages(self) -> list[Stage]:
        """The stages of the encoder; each except the last halves the resolution."""
        return _stages(self.encoder_dims(self.base_dim), self.temperal_downsample)

    def up_stages(self) -> list[Stage]:
        """The stages of the decoder; each except the last doubles the resolution."""
        return _stages(self.decoder_dims(self.decoder_base_dim or self.base_dim), self.temperal_downsample[::-1])

    @property
    def patch(self) -> int:
        """Side in pixels of the squares that become channels before the first convolution; published: 1."""
        return self.patch_size or 1

    @property
    def scale_factor(self) -> int:
        return super().scale_factor * self.patch

    @property
    def pixel_channels(self) -> int:
        """Channels of the largest maps, which have the resolution of the picture divided by `patch`."""
        return max(self.base_dim, self.decoder_base_dim or self.base_dim)


def _stages(dims: list[int], temporal: tuple[bool, ...]) -> list[Stage]:
    changes = [*((2, 2 if halves else 1) for halves in temporal), (1, 1)]
    return [Stage(*pair, *change) for pair, change in zip(pairwise(dims), changes, strict=True)]
