"""Recognises weights that other programs wrote, so that a refusal says what they are.

Single-file releases and community quantisations of Qwen-Image come as GGUF files, as pickles, as databases of Draw
Things, and as safetensors with a common prefix before every name (ComfyUI), with marker tensors that select a variant
of the model, or with packed weights beside their scales. Reading one as something else would measure another model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError

SAFETENSORS = "a single safetensors file"
GGUF = "a GGUF file"
_PICKLE = "a pickle, which can run code when it is read"
_ZIP = "a zip archive as torch.save writes it, with a pickle, which can run code when it is read"
_SQLITE = "an SQLite database, in which Draw Things keeps models"

_SUFFIXES = {
    ".gguf": GGUF,
    **dict.fromkeys((".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"), _PICKLE),
}
_STARTS = {b"GGUF": GGUF, b"SQLite format 3\0": _SQLITE, b"PK\x03\x04": _ZIP}
_ADVICE = {
    GGUF: "A folder cannot hold GGUF beside other weights: give the file itself as model.path",
    _PICKLE: "Save its tensors as safetensors",
    _ZIP: "Save its tensors as safetensors",
    _SQLITE: "Give the safetensors or GGUF file that it was made from",
    SAFETENSORS: "Give a folder in the layout of Qwen/Qwen-Image, which the Hub has beside such files",
}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "model.", "first_stage_model.")
MARKER = re.compile(r"(?:.*\.)?(__\w+__|scaled_fp8|comfy_quant)")
"""Tensors that only say what the others are."""
_MARKED = {
    "__index_timestep_zero__": "Qwen-Image-Edit-2511 as ComfyUI stores it",
    "scaled_fp8": "float8 weights with scales as ComfyUI stores them",
    "comfy_quant": "quantised weights as ComfyUI stores them",
}
_PACKED = (
    (re.compile(r".*\.(absmax|quant_map|quant_state\.bitsandbytes__\w+|SCB)"), "bitsandbytes"),
    (re.compile(r".*\.(scale_weight|weight_scale|weight_scale_2|input_scale|scale_input)"), "a float8 writer"),
    (re.compile(r".*\.(qweight|qzeros|wscales|wzeros|smooth_factor|proj_down|lora_down)"), "GPTQ, AWQ or Nunchaku"),
    (re.compile(r".*\._(data|scale|zero_point|shift)|.*\.(tensor_data|_qdata)"), "quanto or torchao"),
)


def kind_of(file: Path) -> str | None:
    """What a file is, from its first bytes and its suffix, as a phrase; None for a file of no known kind."""
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
    except OSError:
        start = b""
    for magic, kind in _STARTS.items():
        if start.startswith(magic):
            return kind
    if file.suffix == ".safetensors" and start[8:9] == b"{":
        return SAFETENSORS
    if start.startswith(b"\x80") and start[1:2] in b"\x02\x03\x04\x05":
        return _PICKLE
    return _SUFFIXES.get(file.suffix.lower())


def names_weights(path: str) -> bool:
    """Whether a path ends like that of a file of weights, read or not."""
    return path.lower().endswith((".safetensors", *_SUFFIXES))


def refuse_file(what: str, file: Path) -> None:
    """Raises InputError if `file` is of a known kind that is not read. The message begins with `what`."""
    kind = kind_of(file)
    if kind is not None:
        raise InputError(f"{what} is {kind}. {_ADVICE[kind]}")


def others(folder: Path) -> str:
    """A sentence on the weights in a folder that has no readable ones; empty if there are none of a known kind."""
    for file in sorted(folder.iterdir()):
        kind = kind_of(file) if file.suffix.lower() in _SUFFIXES and file.is_file() else None
        if kind is not None:
            return f"{file.name} is {kind}. {_ADVICE[kind]}"
    return ""


def refuse_method(config: Mapping[str, Any], file: Path) -> None:
    """Raises InputError if the configuration of a component names a quantisation method of another program."""
    for key in ("quantization_config", "quantization"):
        entry = config.get(key)
        if isinstance(entry, Mapping) and "quant_method" in entry:
            raise InputError(
                f"{file}: quantised by another program, {key}.quant_method is {_short(entry['quant_method'])}. Give "
                "the unquantised checkpoint; `models technique=[affine4] from=DIR to=DIR` writes a quantised copy of it"
            )


def refuse_names(names: Iterable[str], file: Path) -> None:
    """Raises InputError for tensors that mark weights of another model, or weights packed by another program."""
    for name in names:
        if marker := MARKER.fullmatch(name):
            kind = _MARKED.get(marker[1], "a variant of the model that only its writer knows")
            raise InputError(
                f"{file}: tensor {name} marks {kind}. Give a checkpoint of text to image in the published layout"
            )
        for pattern, writer in _PACKED:
            if pattern.fullmatch(name):
                raise InputError(
                    f"{file}: tensor {name} belongs to weights packed by {writer}, which are not read. Give the "
                    "unquantised checkpoint"
                )


def prefix_of(stored: Collection[str], expected: Collection[str]) -> str | None:
    """The prefix that most stored names have before an expected name; None without one."""
    for prefix in _PREFIXES:
        matching = sum(name.startswith(prefix) and name[len(prefix) :] in expected for name in stored)
        if 2 * matching > len(stored):
            return prefix
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
