"""Typed forms of the published `config.json` files of Qwen-Image 1.x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from precision_lab.errors import InputError
from precision_lab.model.autoencoder_config import AutoencoderConfig
from precision_lab.model.config import LARGEST, check_axes
from precision_lab.model.language_body_config import LanguageBodyConfig
from precision_lab.model.qwen_image.kinds import KINDS
from precision_lab.model.text_to_image.component import ComponentConfig
from precision_lab.model.text_to_image.kinds import Kinds

_OTHER_MODELS = {
    "guidance_embeds": "guidance-distilled models",
    "zero_cond_t": "Qwen-Image-Edit-2511",
    "use_additional_t_cond": "Qwen-Image-Layered",
    "use_layer3d_rope": "Qwen-Image-Layered",
}
"""Switches of the transformer's class that other models turn on."""


@dataclass(frozen=True)
class TransformerConfig(ComponentConfig):
    """`transformer/config.json` of QwenImageTransformer2DModel; the defaults are those of the class."""

    kinds: ClassVar[Kinds] = KINDS
    part: ClassVar[str] = "transformer"
    counts: ClassVar[tuple[str, ...]] = ("num_layers",)

    patch_size: int = 2
    in_channels: int = 64
    out_channels: int = 16
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    guidance_embeds: bool = False
    zero_cond_t: bool = False
    use_additional_t_cond: bool = False
    use_layer3d_rope: bool = False

    def __post_init__(self) -> None:
        check_axes(self.axes_dims_rope, self.attention_head_dim)
        if self.patch_size != 2:
            raise InputError(f"patch_size is {self.patch_size}, expected 2")
        for key, model in _OTHER_MODELS.items():
            if getattr(self, key):
                raise InputError(f"{key} is true, as in {model}; only the text-to-image model is supported")
        if self.dim > LARGEST:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} times attention_head_dim {self.attention_head_dim} "
                f"is {self.dim} channels, expected at most {LARGEST}"
            )

    @property
    def dim(self) -> int:
        """Width of both residual streams."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class TextEncoderConfig(LanguageBodyConfig, ComponentConfig):
    """The language body of `text_encoder/config.json` (Qwen2_5_VLForConditionalGeneration).

    The default values are those of Qwen/Qwen-Image.
    """

    kinds: ClassVar[Kinds] = KINDS
    part: ClassVar[str] = "text_encoder"
    qkv_bias: ClassVar[bool] = True
    qk_norm: ClassVar[bool] = False
    final_norm: ClassVar[bool] = True
    class_defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
    }

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    hidden_act: str = "silu"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}"
            )
        super().__post_init__()

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VAEConfig(AutoencoderConfig, ComponentConfig):
    """`vae/config.json` of AutoencoderKLQwenImage; the defaults are those of the class."""

    kinds: ClassVar[Kinds] = KINDS
    part: ClassVar[str] = "vae"
    counts: ClassVar[tuple[str, ...]] = ("num_res_blocks",)

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    input_channels: int = 3
    latents_mean: tuple[float, ...] = (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    )
    latents_std: tuple[float, ...] = (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    )

    @property
    def pixel_channels(self) -> int:
        """Channels of the maps that have the resolution of the picture."""
        return self.base_dim
