"""The factor of an adapter's product: alpha / rank, or what a configuration of PEFT says.

Where a file states nothing, the factor is 1, as in ComfyUI and diffusers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError, shown
from precision_lab.model.weights import read_json
from precision_lab.record.files import parse_json

METADATA_KEY = "lora_adapter_metadata"
"""Under which diffusers keeps the configuration of PEFT in a safetensors file, as JSON."""

_COMPONENT = "transformer."
_PATTERN = re.compile(r"\^?(\w|\\?\.)+\$?")
_KINDS = {"LORA": "lora_alpha", "LOKR": "alpha"}
"""The types of PEFT that are read, with the name that each has for alpha."""
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "lycoris")
"""Initialisations that leave the base weight as it is; PiSSA, OLoRA, LoftQ and others change it."""
_REFUSED = (
    "use_dora",
    "use_qalora",
    "layer_replication",
    "alora_invocation_tokens",
    "megatron_config",
    "target_parameters",
)


@dataclass(frozen=True)
class Scaling:
    """A configuration of PEFT: rank and alpha, with exceptions by pattern, and alpha / sqrt(rank) for `rslora`.

    source: where it was read, for messages. rslora: Kalajdzievski, arXiv:2312.03732.
    """

    source: str
    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False

    def alpha_of(self, module: str) -> float:
        """The alpha of the linear at the path `module`."""
        return _of(self.alphas, module, self.alpha)

    def rank_of(self, module: str) -> int:
        """The rank of the linear at the path `module`."""
        return _of(self.ranks, module, self.rank)

    def factor(self, module: str) -> float:
        """What the product of the factors is multiplied by."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)

    @classmethod
    def from_file(cls, file: Path) -> Scaling:
        """Reads adapter_config.json of PEFT. Raises InputError that names the file and the entry."""
        return cls.from_config(read_json(file), str(file))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], file: Path) -> Scaling | None:
        """Reads what diffusers keeps in a safetensors file; None if there is nothing. Raises InputError as above."""
        text = metadata.get(METADATA_KEY)
        if text is None:
            return None
        where = f"{file}: {METADATA_KEY}"
        try:
            config = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON") from error
        if not isinstance(config, dict):
            raise InputError(f"{where} is {shown(config)}, expected a mapping")
        own = {key.removeprefix(_COMPONENT): value for key, value in config.items() if key.startswith(_COMPONENT)}
        return cls.from_config(own or config, where)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> Scaling:
        """Reads a configuration of PEFT. Raises InputError for entries that are missing, malformed or not supported."""
        kind = config.get("peft_type", "LORA")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise InputError(f"{source}: peft_type is {shown(kind)}, expected one of {', '.join(_KINDS)}")
        for name in _REFUSED:
            if config.get(name):
                raise InputError(f"{source}: {name} is {shown(config[name])}, which is not read; expected plain LoRA")
        start = config.get("init_lora_weights")
        if not any(start is known or start == known for known in _HARMLESS_STARTS):
            raise InputError(
                f"{source}: init_lora_weights is {shown(start)}, which changes the weights of the model too; "
                "convert the adapter to plain LoRA"
            )
        rslora = config.get("use_rslora", False)
        if not isinstance(rslora, bool):
            raise InputError(f"{source}: use_rslora is {shown(rslora)}, expected true or false")
        return cls(
            source,
            _rank(config.get("r"), f"{source}: r"),
            _number(config.get(_KINDS[kind]), f"{source}: {_KINDS[kind]}"),
            {key: _rank(value, f"{source}: rank_pattern") for key, value in _patterns(config, "rank_pattern", source)},
            {
                key: _number(value, f"{source}: alpha_pattern")
                for key, value in _patterns(config, "alpha_pattern", source)
            },
            rslora,
        )


def _patterns(config: Mapping[str, Any], name: str, source: str) -> list[tuple[str, Any]]:
    """The entries of a mapping of patterns. A pattern is an expression, of which only names are read."""
    entries = config.get(name)
    entries = {} if entries is None else entries
    if not isinstance(entries, dict):
        raise InputError(f"{source}: {name} is {shown(entries)}, expected a mapping")
    for key in entries:
        if not _PATTERN.fullmatch(key):
            raise InputError(f"{source}: {name} has {shown(key)}, expected names of modules")
    return list(entries.items())


def _of(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The entry of the first pattern that names `module`, as PEFT matches it: the whole path or the end of it."""
    for pattern, value in patterns.items():
        name = pattern.removesuffix("$").replace("\\.", ".")
        if module == name.removeprefix("^") or (not name.startswith("^") and module.endswith(f".{name}")):
            return value
    return default


def _rank(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InputError(f"{what} is {shown(value)}, expected a whole number of at least 1")
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise InputError(f"{what} is {shown(value)}, expected a finite number")
    return float(value)
