"""Tells weights of single components from whole checkpoints, by what is on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from precision_lab.model import foreign

WHOLE = "model_index.json"
"""The file that every whole checkpoint of diffusers has."""

_READ = ".safetensors"
_PARTS = ("transformer", "text_encoder")
"""Components whose weights a folder without `WHOLE` may hold, as mflux saves them; a VAE is read from the base."""


def lone_weights(source: str) -> Mapping[str, Path]:
    """The files or folders of weights that `source` names, by component; empty unless it holds weights alone.

    A GGUF or safetensors file is the transformer; so is a folder with weights in it. A folder with a folder
    `transformer`, but without model_index.json, holds what mflux saves.
    """
    path = os.path.expanduser(source)
    if os.path.isfile(path):
        return {"transformer": Path(path)} if _is_weights(Path(path)) else {}
    if not os.path.isdir(path) or os.path.isfile(os.path.join(path, WHOLE)):
        return {}
    folder = Path(path)
    if _holds_weights(folder):
        return {"transformer": folder}
    return {
        part: folder / part for part in _PARTS if _holds_weights(folder / part) and _holds_weights(folder / _PARTS[0])
    }


def _holds_weights(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(file.suffix == _READ and file.is_file() for file in folder.iterdir())
    except OSError:
        return False


def _is_weights(file: Path) -> bool:
    return file.suffix == _READ or foreign.kind_of(file) == foreign.GGUF
