"""Chooses the reader for a file or a folder of weights."""

from __future__ import annotations

from pathlib import Path

from precision_lab.errors import InputError
from precision_lab.model import foreign
from precision_lab.model.stored import bitsandbytes, float8_folder
from precision_lab.model.stored.base import StoredWeights
from precision_lab.model.stored.bitsandbytes import BitsandbytesFolder
from precision_lab.model.stored.comfyui import ComfyFile
from precision_lab.model.stored.float8_folder import Float8Folder
from precision_lab.model.stored.gguf import GgufFile
from precision_lab.model.stored.joined import SplitWeights
from precision_lab.model.weights import WeightFiles, read_json, shards


def open_weights(source: Path) -> StoredWeights:
    """The weights in `source`, a folder of a component or a single file, with their headers checked.

    Linears that the files join are apart. Raises InputError for files that are damaged or that no reader reads.
    """
    return SplitWeights.of(_opened(source))


def _opened(source: Path) -> StoredWeights:
    if source.is_file():
        kind = foreign.kind_of(source)
        if kind == foreign.SAFETENSORS or source.suffix == ".safetensors":
            return ComfyFile.open(source)
        if kind != foreign.GGUF:
            foreign.refuse_file(f"model.path {str(source)!r}", source)
            raise InputError(
                f"model.path {str(source)!r} is no file of weights, expected safetensors, GGUF or a folder"
            )
        return GgufFile.open(source)
    file = source / "config.json"
    config = read_json(file) if file.is_file() else {}
    if bitsandbytes.wrote(config):
        return BitsandbytesFolder.open(source, config, shards(source))
    if source.is_dir() and float8_folder.holds(source, config, files := shards(source)):
        return Float8Folder.open(source, config, files)
    return WeightFiles.open(source)
