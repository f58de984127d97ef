"""Typed forms of the published `config.json` files.

Each class reads the mapping in a checkpoint, keeps the keys that the model uses and returns the names of the others, so
that a loader can report them. Releases differ in keys that have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Self, get_args, get_origin, get_type_hints

from precision_lab.errors import InputError, nearest

_STORAGE_KEYS = {"quantization", "quantization_config"}
"""Keys that describe how the weights are stored, see stored_quantization."""


@dataclass(frozen=True)
class Config:
    """Base class that reads the known keys of a mapping and checks the type of each value."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        """The configuration and the sorted names of the ignored keys, except for metadata (names that start with _).

        Raises InputError for a value of the wrong type.
        """
        defaults = {f.name: f.default for f in fields(cls)}
        hints = get_type_hints(cls)
        values = {}
        for key in sorted(defaults.keys() & raw.keys()):
            try:
                values[key] = _coerce(raw[key], hints[key])
            except TypeError as error:
                raise InputError(
                    f"{cls.__name__}: {key} is {raw[key]!r}, expected a value like {defaults[key]!r}"
                ) from error
        ignored = sorted(k for k in raw.keys() - defaults.keys() - _STORAGE_KEYS if not k.startswith("_"))
        return cls(**values), tuple(ignored)


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; a list is accepted for a tuple and an integer for a float.

    Raises TypeError for other types, and for integers below 1, because all of them are sizes or counts.
    """
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(item, get_args(hint)[0]) for item in value)
    if NoneType in get_args(hint):
        return None if value is None else _coerce(value, get_args(hint)[0])
    if hint is float and type(value) is int:
        return float(value)
    # not isinstance, which would accept a bool as an integer
    if type(value) is not hint or (hint is int and value < 1):
        raise TypeError
    return value


@dataclass(frozen=True)
class TransformerConfig(Config):
    """`transformer/config.json` of QwenImageTransformer2DModel; the defaults are those of Qwen/Qwen-Image."""

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
        axes = self.axes_dims_rope
        if len(axes) != 3 or sum(axes) != self.attention_head_dim or any(d % 2 for d in axes):
            raise InputError(
                f"transformer config: axes_dims_rope {list(axes)} must be three even numbers that add up to "
                f"attention_head_dim {self.attention_head_dim}"
            )
        for key in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
            if getattr(self, key):
                raise InputError(f"transformer config: {key} is true; only the text-to-image model is supported yet")

    @property
    def dim(self) -> int:
        """Width of both residual streams."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class TextEncoderConfig(Config):
    """The language body of `text_encoder/config.json` (Qwen2_5_VLForConditionalGeneration)."""

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    hidden_act: str = "silu"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        # transformers 4.52 moved the keys of the language body into text_config, 5.0 those of RoPE into rope_parameters
        body = {**raw, **_section(raw, "text_config")}
        rope = _section(body, "rope_parameters")
        if "rope_theta" in rope:
            body["rope_theta"] = rope["rope_theta"]
        return super().from_dict(body)

    def __post_init__(self) -> None:
        if self.hidden_act != "silu":
            raise InputError(f"text encoder config: hidden_act {self.hidden_act!r}, expected 'silu'")
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"text encoder config: {self.hidden_size} channels and {self.num_key_value_heads} key-value heads do "
                f"not divide into {self.num_attention_heads} heads"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def _section(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise InputError(f"text encoder config: {key} is {value!r}, expected an object")
    return value


@dataclass(frozen=True)
class VAEConfig(Config):
    """`vae/config.json` of AutoencoderKLQwenImage."""

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

    def __post_init__(self) -> None:
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise InputError(
                f"vae config: {len(self.temperal_downsample)} temperal_downsample entries for {len(self.dim_mult)} "
                "stages, expected one fewer"
            )
        for key in ("latents_mean", "latents_std"):
            if len(getattr(self, key)) != self.z_dim:
                raise InputError(
                    f"vae config: {key} has {len(getattr(self, key))} entries, expected z_dim {self.z_dim}"
                )

    @property
    def scale_factor(self) -> int:
        """Pixels along one side of a latent; 8 in the published model."""
        return 2 ** len(self.temperal_downsample)


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """`scheduler/scheduler_config.json` of FlowMatchEulerDiscreteScheduler."""

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = True
    base_shift: float = 0.5
    max_shift: float = 0.9
    base_image_seq_len: int = 256
    max_image_seq_len: int = 8192
    shift_terminal: float | None = 0.02
    time_shift_type: str = "exponential"
    invert_sigmas: bool = False
    stochastic_sampling: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False

    def __post_init__(self) -> None:
        if self.time_shift_type not in ("exponential", "linear"):
            raise InputError(
                f"scheduler config: time_shift_type {self.time_shift_type!r}. "
                + nearest(self.time_shift_type, ("exponential", "linear"))
            )
        if self.num_train_timesteps != 1000:
            # the transformer would receive a timestep that differs from sigma
            raise InputError(f"scheduler config: num_train_timesteps is {self.num_train_timesteps}, expected 1000")
        if self.base_image_seq_len == self.max_image_seq_len:
            raise InputError(
                f"scheduler config: base_image_seq_len and max_image_seq_len are both {self.max_image_seq_len}, "
                "expected two numbers: the shift is interpolated between them"
            )
        for key in (
            *("invert_sigmas", "stochastic_sampling"),
            *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        ):
            if getattr(self, key):
                raise InputError(f"scheduler config: {key} is true, which Qwen-Image does not use")
