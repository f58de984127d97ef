"""What the configurations of language bodies have in common (see `language_body`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from precision_lab.errors import InputError
from precision_lab.model.config import LARGEST, Config, section, short


class LanguageBodyConfig(Config):
    """The language body in the `config.json` of a Qwen-VL model; a subclass declares the fields and their defaults.

    The defaults are those of the published checkpoint. A key that a file leaves out takes the default of its class in
    transformers instead, see `class_defaults`.
    """

    counts: ClassVar[tuple[str, ...]] = ("num_hidden_layers",)
    class_defaults: ClassVar[Mapping[str, Any]]
    """Defaults of the class in transformers, where they differ from those of the fields."""
    qkv_bias: ClassVar[bool]
    """Whether the q, k and v projections have a bias."""
    qk_norm: ClassVar[bool]
    """Whether each head's queries and keys are normalised."""
    final_norm: ClassVar[bool]
    """Whether the result is normalised."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    hidden_act: str

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        # transformers 4.52 moved the keys of the language body into text_config, 5.0 those of RoPE into rope_parameters
        cls.check_class(raw)
        body = {**raw, **section(raw, "text_config")}
        for key in ("rope_parameters", "rope_scaling"):
            rope = section(body, key)
            if "rope_theta" in rope:
                body["rope_theta"] = rope["rope_theta"]
            for name in ("rope_type", "type"):
                if rope.get(name, "default") not in ("default", "mrope"):
                    raise InputError(f"{key}.{name} is {short(rope[name])}, expected default or mrope")
        return super().from_dict({**cls.class_defaults, **body})

    def __post_init__(self) -> None:
        if self.hidden_act != "silu":
            raise InputError(f"hidden_act is {short(self.hidden_act)}, expected 'silu'")
        for key, least, most in (("rms_norm_eps", 0.0, 1.0), ("rope_theta", 1.0, 1e12)):
            if not least < getattr(self, key) < most:
                raise InputError(f"{key} is {getattr(self, key)}, expected between {least:g} and {most:g}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"a head has {self.head_dim} channels (head_dim), expected an even number")
        if self.num_attention_heads * self.head_dim > LARGEST:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} of {self.head_dim} channels each, expected at most "
                f"{LARGEST} channels"
            )
