"""The names of an adapter's tensors as different programs write them.

- PEFT: `base_model.model.PATH.lora_A.weight`, or with the adapter's name before `.weight`; LoKr as `PATH.lokr_w1`.
- diffusers: `transformer.PATH.lora_A.weight`; before PEFT, `transformer.PATH.lora.down.weight`.
- ComfyUI and others: `diffusion_model.PATH.lora_down.weight` or `lora_A`, and `PATH.alpha`; also without a prefix, as
  LightX2V's Lightning files.
- kohya: `lora_unet_PATH.lora_down.weight` and `.alpha`, with underscores for the points of the path; LyCORIS writes
  `lycoris_PATH.lokr_w1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from precision_lab.errors import InputError

_PREFIXES = {
    "base_model.model.": "PEFT",
    "model.diffusion_model.": "ComfyUI",
    "diffusion_model.": "ComfyUI",
    "transformer.": "diffusers",
    "lora_unet_": "kohya",
    "lycoris_": "LyCORIS",
    "": "no prefix",
}
"""The writers of files by the prefix of their names; of two that fit, the first."""

_PART = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"(?P<low>lora_[AB]|lora_down|lora_up|lora\.down|lora\.up)(?:\.(?P<adapter>[\w-]+))?\.weight"
    r"|lokr_(?P<kronecker>w[12](?:_[ab])?)"
    r"|(?P<alpha>alpha))"
)
_FACTORS = {
    "lora_A": "down",
    "lora_down": "down",
    "lora.down": "down",
    "lora_B": "up",
    "lora_up": "up",
    "lora.up": "up",
}

_REFUSED = (
    (re.compile(r".*\.(dora_scale|lora_magnitude_vector.*)"), "is of DoRA, which rescales the rows of the weight"),
    (re.compile(r".*\.hada_.*"), "is of LoHa"),
    (
        re.compile(r".*\.(lora_mid|lokr_t2|lora_embedding_[AB])(\..*)?"),
        "is of an adapter of a convolution or embedding",
    ),
    (re.compile(r".*\.(diff|diff_b|set_weight|lora_[AB]\.(\w+\.)?bias|lora_up\.bias)"), "is a change without factors"),
)


@dataclass(frozen=True)
class Layer:
    """The tensors of one linear: by factor (`down`, `up`, `w1`, `w2_a`, ...) or `alpha`, the name in the file.

    module: as the file spells it, without the prefix.
    """

    module: str
    tensors: Mapping[str, str]

    @property
    def key(self) -> str:
        """What identifies the linear, see `key_of`."""
        return key_of(self.module)

    @property
    def first(self) -> str:
        """The name of a tensor of this layer, for messages: a factor, if there is one."""
        return next((name for part, name in self.tensors.items() if part != "alpha"), next(iter(self.tensors.values())))


def key_of(path: str) -> str:
    """A path with underscores for its points, which is how kohya spells it."""
    return path.replace(".", "_")


def brief(name: str) -> str:
    """A name from a file, for a message: cut off where no published name is as long."""
    return name if len(name) <= 120 else f"{name[:120]}..."


def layers_of(names: Iterable[str], file: Path) -> tuple[str, list[Layer]]:
    """The prefix of an adapter's names and its layers, in the order of `names`.

    Raises InputError that names the tensor and the file: for DoRA and other kinds that are not read, unknown names, a
    mixture of prefixes or of adapters, a missing factor, and a file without an adapter.
    """
    names = list(names)
    _refuse(names, file)
    prefixes: dict[str, str] = {}
    adapters: dict[str | None, str] = {}
    found: dict[str, dict[str, str]] = {}
    spelled: dict[str, str] = {}
    unknown = []
    for name in names:
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        part = _PART.fullmatch(name.removeprefix(prefix))
        if part is None:
            unknown.append(name)
            continue
        prefixes.setdefault(prefix, name)
        if part["low"]:
            adapters.setdefault(part["adapter"], name)
        factor = part["alpha"] or part["kronecker"] or _FACTORS[part["low"]]
        tensors = found.setdefault(key_of(part["module"]), {})
        spelled.setdefault(key_of(part["module"]), part["module"])
        if factor in tensors:
            raise InputError(
                f"{file}: tensors {brief(tensors[factor])} and {brief(name)} are the same part of one linear"
            )
        tensors[factor] = name
    if unknown:
        raise InputError(
            f"{file}: tensor {brief(unknown[0])} is of no known adapter ({len(unknown)} of {len(names)} tensors), "
            "expected PATH.lora_A.weight, PATH.lora_down.weight, PATH.lokr_w1 or PATH.alpha"
        )
    if not found:
        raise InputError(f"{file}: no tensors, expected an adapter")
    for what, kinds in (("prefixes", prefixes), ("adapters", adapters)):
        if len(kinds) > 1:
            one, other = list(kinds.values())[:2]
            raise InputError(
                f"{file}: tensors {brief(one)} and {brief(other)}: a mixture of {what}, expected one in a file"
            )
    layers = [Layer(spelled[key], tensors) for key, tensors in found.items()]
    _expect_whole(layers, file)
    return next(iter(prefixes)), layers


def names_an_adapter(names: Iterable[str]) -> bool:
    """Whether a tensor is named like a factor of an adapter, of a kind that is read or of one that is refused."""
    refused = _REFUSED[:-1]  # changes without factors are parts of whole weights too
    return any(
        ((found := _PART.fullmatch(name)) and not found["alpha"]) or any(kind.fullmatch(name) for kind, _ in refused)
        for name in names
    )


def writer_of(prefix: str) -> str:
    """Who writes names with this prefix."""
    return _PREFIXES[prefix]


def _refuse(names: list[str], file: Path) -> None:
    for pattern, what in _REFUSED:
        found = [name for name in names if pattern.fullmatch(name)]
        if found:
            raise InputError(
                f"{file}: tensor {brief(found[0])} {what} ({len(found)} of {len(names)} tensors), "
                "which is not read; expected LoRA or LoKr"
            )


def _expect_whole(layers: list[Layer], file: Path) -> None:
    """Raises InputError unless every layer has exactly the factors of one kind of adapter."""
    partial = [(layer, missing) for layer in layers if (missing := _missing(layer.tensors))]
    if partial:
        layer, missing = partial[0]
        raise InputError(
            f"{file}: {missing} of {brief(layer.module)} is missing beside tensor {brief(layer.first)} "
            f"({len(partial)} of {len(layers)} linears are partial)"
        )


def _missing(tensors: Mapping[str, str]) -> str:
    """The factor that a layer lacks; empty if it is whole."""
    low = [name for name in ("down", "up") if name in tensors]
    kronecker = [name for name in tensors if name.startswith("w")]
    if low and not kronecker:
        return next((name for name in ("down", "up") if name not in tensors), "")
    if low:
        return "one kind of adapter"
    for name in ("w1", "w2"):
        halves = [half for half in (f"{name}_a", f"{name}_b") if half not in tensors]
        if (name in tensors) == (len(halves) < 2):
            return f"one form of lokr_{name}" if name in tensors else f"lokr_{name}"
        if name not in tensors and halves:
            return f"lokr_{halves[0]}"
    return ""
