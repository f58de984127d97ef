"""Strict loading of safetensors, single-file or sharded, into a module.

Headers are checked before any tensor is read. A truncated file, a missing shard or a tensor that does not fit therefore
raises a one-line error instead of a crash in the middle of a run. Tensors stay lazy until they are evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from precision_lab.device.page_cache import Extent
from precision_lab.errors import InputError, first_line, nearest
from precision_lab.model import foreign, mflux
from precision_lab.model.headers import check_header, read_header
from precision_lab.model.stored_quantization import quantized_modules

Sanitize = Callable[[dict[str, mx.array]], tuple[dict[str, mx.array], list[str]]]
"""Maps stored tensors, by name, to those that the module expects; also returns the names that were left out."""


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder: those that its index names, or all of them without an index.

    Raises InputError if the folder has no such file, or an index that names an absent file or one outside the folder.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}, expected one with config.json and *.safetensors")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        weight_map = read_json(indices[0]).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{indices[0]}: no weight_map, expected a mapping of tensor names to files")
        names = sorted(set(map(str, weight_map.values())))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise InputError(f"{indices[0]} names {name!r:.80}, expected a *.safetensors file of its folder")
        absent = [name for name in names if not _is_file(folder / name)]
        if absent:
            raise InputError(
                f"{indices[0].name} names {absent[0]:.80}, which is not in {folder} ({len(absent)} absent)"
            )
        return [folder / name for name in names]
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if not files:
        found = foreign.others(folder)
        raise InputError(
            f"{folder}: no *.safetensors, expected at least one" + (f". {found}" if found else " *.safetensors file")
        )
    return files


def _is_file(path: Path) -> bool:
    """As Path.is_file, and False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read(folder: Path) -> dict[str, mx.array]:
    """All tensors of a component under their published names, lazily loaded.

    Raises InputError for damaged files and for tensors of unsupported dtypes.
    """
    tensors: dict[str, mx.array] = {}
    for file in shards(folder):
        check_header(file)
        try:
            loaded: Any = mx.load(str(file))
        except RuntimeError as error:
            raise InputError(f"{file}: not a safetensors file: {first_line(error)}") from error
        repeated = tensors.keys() & loaded.keys()
        if repeated:
            advice = "" if _indexed(folder) else ". Leave only the shards of one checkpoint in the folder"
            raise InputError(f"{file}: tensor {min(repeated)} is also in another shard{advice}")
        tensors.update(loaded)
    return mflux.published_names(tensors) if mflux.wrote(metadata(folder)) else tensors


def _indexed(folder: Path) -> bool:
    return any(folder.glob("*.safetensors.index.json"))


def extents(folder: Path) -> dict[str, Extent]:
    """The file, offset and size in bytes of every tensor of a component, under its published name."""
    places = {}
    for file in shards(folder):
        data = read_header(file)[1]
        for name, entry in check_header(file).items():
            begin, end = entry["data_offsets"]
            places[name] = Extent(file, data + begin, end - begin)
    return mflux.published_names(places) if mflux.wrote(metadata(folder)) else places


def metadata(folder: Path) -> dict[str, str]:
    """The metadata in the headers of a component's weight files, complemented by that in their index.

    Raises InputError if two files contradict each other.
    """
    merged: dict[str, str] = {}
    for file in shards(folder):
        own = read_header(file)[0].get("__metadata__")
        for key, value in (own if isinstance(own, dict) else {}).items():
            if merged.setdefault(key, str(value)) != str(value):
                raise InputError(f"{file}: {key} is {value!r} in its header, but {merged[key]!r} in another shard's")
    for index in sorted(folder.glob("*.safetensors.index.json"))[:1]:
        own = read_json(index).get("metadata")
        for key, value in (own if isinstance(own, dict) else {}).items():
            merged.setdefault(key, str(value))
    return merged


def load(model: nn.Module, folder: Path, sanitize: Sanitize | None = None) -> list[str]:
    """Loads exactly the tensors of `folder` into `model`; returns the names that `sanitize` left out.

    A linear or an embedding that the folder stores quantised is replaced in `model` by its quantised form (see
    `stored_quantization`).

    Raises InputError that names the first tensor that is missing, unknown, of another shape, or packed differently from
    what the folder declares. `model` is unchanged in that case.
    """
    tensors, modules, ignored = _fitting(model, folder, sanitize)
    for path, module in modules.items():
        _put(model, path, module)
    model.load_weights(list(tensors.items()), strict=True)
    return ignored


def _fitting(
    model: nn.Module, folder: Path, sanitize: Sanitize | None
) -> tuple[dict[str, mx.array], dict[str, nn.Module], list[str]]:
    """The tensors for the model, the quantised modules that must replace its own, by path, and the names left out."""
    sanitize = sanitize or (lambda stored: (stored, []))
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    foreign.refuse_method(config, file)
    tensors, ignored = sanitize(read(folder))

    def rename(path: str) -> str | None:
        return next((name.removesuffix(".weight") for name in sanitize({f"{path}.weight": mx.array(0.0)})[0]), None)

    try:
        modules = quantized_modules(model, config, metadata(folder), tensors, rename)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    expected = {name: parameter.shape for name, parameter in tree_flatten(model.parameters())}
    for path, module in modules.items():
        del expected[f"{path}.weight"]
        expected |= {f"{path}.{name}": parameter.shape for name, parameter in tree_flatten(module.parameters())}
    _check_names(folder, tensors, expected)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            module = modules.get(name.rpartition(".")[0])
            packing = f" ({module.bits} bits in groups of {module.group_size})" if module is not None else ""
            raise InputError(
                f"{folder}: tensor {name} has shape {tensors[name].shape}, expected {shape} by config.json{packing}"
            )
    return tensors, modules, ignored


def _check_names(folder: Path, tensors: Mapping[str, mx.array], expected: Mapping[str, object]) -> None:
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        prefix = foreign.prefix_of(tensors, expected)
        if prefix is None:
            advice = nearest(missing[0], extra or tensors)
        else:
            advice = f"The names have the prefix {prefix!r}, as ComfyUI and others store them: save them without it"
        raise InputError(
            f"{folder}: tensor {missing[0]} is missing ({len(missing)} missing, {len(extra)} unknown). {advice}"
        )
    if extra:
        raise InputError(f"{folder}: unknown tensor {extra[0]} ({len(extra)} unknown). " + nearest(extra[0], expected))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    parent: Any = model
    for key in parents:
        parent = parent[int(key)] if isinstance(parent, list) else parent[key]
    if isinstance(parent, list):
        parent[int(name)] = module
    else:
        parent[name] = module


def cast(model: nn.Module, weights: mx.Dtype | None, compute: mx.Dtype) -> None:
    """Rounds the weights to the storage dtype `weights` (None: as stored), then casts them for the dtype `compute`.

    With fp32 computation they stay narrow, because an fp32 copy of 20 B weights would not fit one GPU; MLX upcasts them
    exactly where they are used. With 16-bit computation they are cast, because MLX would otherwise promote the product.
    Packed weights and integer scales are unchanged.
    """
    for dtype in (weights, None if compute == mx.float32 else compute):
        if dtype is not None:
            model.set_dtype(dtype)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError if the file cannot be read or holds no JSON object."""
    try:
        if file.exists() and not file.is_file() and not file.is_dir():  # reading a pipe would wait for ever
            raise InputError(f"{file} is not a regular file, expected JSON")
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected a JSON object")
    return value
