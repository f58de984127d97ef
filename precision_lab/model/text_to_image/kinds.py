"""The classes that the files of a checkpoint name, and the refusal of files of another class.

A checkpoint names classes of diffusers and transformers: model_index.json that of the pipeline and of each component,
and the configuration of each component its own. Another pipeline, model or scheduler computes another function, even
where its weights have the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from precision_lab.errors import InputError

READERS = {"QwenImagePipeline": "model=qwen_image", "QwenImage21Pipeline": "model=qwen_image_21"}
"""The option that reads the checkpoints of a pipeline."""


@dataclass(frozen=True)
class Kinds:
    """The classes that one model reads.

    supported: what to say of it. classes: by component, the classes that can be read, first that of the published
    checkpoint. text_model_types: values of `model_type` of the text encoder, likewise.
    """

    pipeline: str
    supported: str
    classes: Mapping[str, tuple[str, ...]]
    text_model_types: tuple[str, ...]

    def check_pipeline(self, index: Mapping[str, Any]) -> None:
        """Checks the classes that model_index.json names. A file that names none is accepted.

        Raises InputError that names the pipeline or the component of another class.
        """
        pipeline = index.get("_class_name", self.pipeline)
        if pipeline != self.pipeline:
            reader = READERS.get(pipeline if isinstance(pipeline, str) else "")
            raise InputError(
                f"a checkpoint of {_named(pipeline)}, expected {self.pipeline}: "
                + (f"{reader} model.path=DIR reads it" if reader else f"only {self.supported} is supported")
            )
        for part in self.classes:
            entry = index.get(part)
            if isinstance(entry, list | tuple) and len(entry) == 2 and entry[1] is not None:
                self._check(part, entry[1], f"{part} is of class")
            elif entry is not None and not isinstance(entry, list | tuple):
                raise InputError(f"{part} is {_named(entry)}, expected a list of a library and a class")

    def check_component(self, part: str, config: Mapping[str, Any]) -> None:
        """Checks the class that the configuration of the component `part` names. Raises InputError for another."""
        if "_class_name" in config:
            self._check(part, config["_class_name"], "_class_name is")
        if part != "text_encoder":
            return
        if config.get("model_type", self.text_model_types[0]) not in self.text_model_types:
            raise InputError(f"model_type is {_named(config['model_type'])}, expected {self.text_model_types[0]}")
        architectures = config.get("architectures") or []
        for name in architectures if isinstance(architectures, list) else [architectures]:
            self._check(part, name, "architectures names")

    def _check(self, part: str, name: object, what: str) -> None:
        if name not in self.classes[part]:
            raise InputError(f"{what} {_named(name)}; the only supported class of a {part} is {self.classes[part][0]}")


def _named(name: object) -> str:
    return name if isinstance(name, str) and name.isidentifier() else repr(name)[:60]
