"""The classes that the files of a checkpoint name, and the refusal of files of another class.

A checkpoint names classes of diffusers and transformers: model_index.json that of the pipeline and of each component,
and the configuration of each component its own. Another pipeline, model or scheduler computes another function, even
where its weights have the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from precision_lab.errors import InputError

PIPELINE = "QwenImagePipeline"

_CLASSES = {
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel", "Qwen2_5_VLTextModel"),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    "transformer": ("QwenImageTransformer2DModel",),
    "vae": ("AutoencoderKLQwenImage",),
}
"""By component, the classes that can be read, first that of Qwen/Qwen-Image."""

_TEXT_MODEL_TYPES = ("qwen2_5_vl", "qwen2_5_vl_text")


def check_pipeline(index: Mapping[str, Any]) -> None:
    """Checks the classes that model_index.json names. A file that names none is accepted.

    Raises InputError that names the pipeline or the component of another class.
    """
    pipeline = index.get("_class_name", PIPELINE)
    if pipeline != PIPELINE:
        raise InputError(
            f"a checkpoint of {_named(pipeline)}, expected {PIPELINE}: only Qwen-Image 1.x, text to image, is supported"
        )
    for part in _CLASSES:
        entry = index.get(part)
        if isinstance(entry, list | tuple) and len(entry) == 2 and entry[1] is not None:
            _check(part, entry[1], f"{part} is of class")
        elif entry is not None and not isinstance(entry, list | tuple):
            raise InputError(f"{part} is {_named(entry)}, expected a list of a library and a class")


def check_component(part: str, config: Mapping[str, Any]) -> None:
    """Checks the class that the configuration of the component `part` names. Raises InputError for another class."""
    if "_class_name" in config:
        _check(part, config["_class_name"], "_class_name is")
    if part != "text_encoder":
        return
    if config.get("model_type", _TEXT_MODEL_TYPES[0]) not in _TEXT_MODEL_TYPES:
        raise InputError(f"model_type is {_named(config['model_type'])}, expected {_TEXT_MODEL_TYPES[0]}")
    architectures = config.get("architectures") or []
    for name in architectures if isinstance(architectures, list) else [architectures]:
        _check(part, name, "architectures names")


def _check(part: str, name: object, what: str) -> None:
    if name not in _CLASSES[part]:
        raise InputError(f"{what} {_named(name)}; the only supported class of a {part} is {_CLASSES[part][0]}")


def _named(name: object) -> str:
    return name if isinstance(name, str) and name.isidentifier() else repr(name)[:60]
