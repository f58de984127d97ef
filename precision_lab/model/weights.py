"""Strict loading of safetensors, single-file or sharded, into a module.

Headers are checked before any tensor is read. A truncated file, a missing shard or a tensor that does not fit therefore
raises a one-line error instead of a crash in the middle of a run. Tensors stay lazy until they are evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from precision_lab.device.page_cache import Extent
from precision_lab.errors import InputError, first_line, nearest
from precision_lab.model import foreign, mflux
from precision_lab.model.headers import Header, check_header
from precision_lab.model.stored.base import StoredWeights
from precision_lab.model.stored.finite import Scales, of_packed
from precision_lab.model.stored.linears import stored_linears
from precision_lab.model.stored_quantization import quantized_modules
from precision_lab.record.files import parse_json

Sanitize = Callable[[MutableMapping[str, mx.array]], tuple[MutableMapping[str, mx.array], list[str]]]
"""Maps stored tensors, by name, to those that the module expects; also returns the names that were left out."""

_LARGEST_JSON = 16 << 20
"""Bytes of a configuration or an index; Python makes up to 24 times as many of it."""


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder: those that its index names, or all of them without an index.

    Raises InputError if the folder has no such file, or an index that names an absent file or one outside the folder.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}, expected one with config.json and *.safetensors")
    indices = _indices(folder)
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


@dataclass(frozen=True, kw_only=True)
class WeightFiles(StoredWeights):
    """The safetensors files in the folder of a component, in the published layout or those of mlx-lm and mflux.

    names: the published name of each stored tensor; tensors that no published checkpoint has are left out.
    """

    names: Mapping[str, str]
    headers: Mapping[Path, Header]

    @property
    def layout(self) -> str:
        if mflux.wrote(self.metadata):
            return f"a folder of mflux, {mflux.level(self.metadata) or 'no'} bits"
        packed = any(name.endswith(".scales") for name in self.names)
        return "a folder of mlx-lm, quantised" if packed else "a folder in the published layout"

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.headers)

    @classmethod
    def open(cls, folder: Path) -> WeightFiles:
        """The files of `folder`.

        Raises InputError for damaged files, for tensors of unsupported dtypes, and for the quantisation of another
        library.
        """
        file = folder / "config.json"
        config = read_json(file) if file.is_file() else {}
        foreign.refuse_method(config, file)
        headers: dict[Path, Header] = {}
        stored: dict[str, str] = {}
        for file in shards(folder):
            headers[file] = header = check_header(file)
            repeated = stored.keys() & header.tensors.keys()
            if repeated:
                advice = "" if _indices(folder) else ". Leave only the shards of one checkpoint in the folder"
                raise InputError(f"{file}: tensor {min(repeated)} is also in another shard{advice}")
            stored |= {name: name for name in header.tensors}
        metadata = _metadata(folder, headers)
        published = mflux.published_names(stored) if mflux.wrote(metadata) else stored
        names = {name: new for new, name in published.items()}
        return cls(source=folder, config=config, metadata=metadata, names=names, headers=headers)

    def _read(self) -> dict[str, mx.array]:
        """All tensors under their published names, lazily loaded."""
        tensors: dict[str, mx.array] = {}
        for file in self.headers:
            try:
                loaded: Any = mx.load(str(file), format="safetensors")
            except RuntimeError as error:
                raise InputError(f"{file}: not a safetensors file: {first_line(error)}") from error
            tensors |= {self.names[name]: tensor for name, tensor in loaded.items() if name in self.names}
        return tensors

    def _scales(self) -> Mapping[str, Scales]:
        shapes = self.shapes()
        return of_packed({name: (entry["dtype"], shapes[name]) for name, _, entry in self._entries()})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(entry["shape"]) for name, _, entry in self._entries()}

    def extents(self) -> dict[str, Extent]:
        """The file, offset and size in bytes of every tensor, under its published name."""
        places = {}
        for name, file, entry in self._entries():
            begin, end = entry["data_offsets"]
            places[name] = Extent(file, self.headers[file].data + begin, end - begin)
        return places

    def _entries(self) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
        """The published name of each tensor, its file and its entry in the header."""
        for file, header in self.headers.items():
            for name, entry in header.tensors.items():
                if name in self.names:
                    yield self.names[name], file, entry


def read(folder: Path) -> MutableMapping[str, mx.array]:
    """All tensors of a component under their published names, lazily loaded. Raises InputError like `open`."""
    return WeightFiles.open(folder).read()


def extents(folder: Path) -> dict[str, Extent]:
    """The file, offset and size in bytes of every tensor of a component, under its published name."""
    return WeightFiles.open(folder).extents()


def _indices(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors.index.json"))


def _metadata(folder: Path, headers: Mapping[Path, Header]) -> dict[str, str]:
    """The metadata in the headers of a component's weight files, complemented by that in their index.

    Raises InputError if two files contradict each other.
    """
    merged: dict[str, str] = {}
    for file, header in headers.items():
        for key, value in header.metadata.items():
            if merged.setdefault(key, str(value)) != str(value):
                raise InputError(f"{file}: {key} is {value!r} in its header, but {merged[key]!r} in another shard's")
    for index in _indices(folder)[:1]:
        own = read_json(index).get("metadata")
        for key, value in (own if isinstance(own, dict) else {}).items():
            merged.setdefault(key, str(value))
    return merged


def load(model: nn.Module, folder: Path, sanitize: Sanitize | None = None) -> list[str]:
    """Loads exactly the tensors of `folder` into `model`, as `load_files` does."""
    return load_files(model, WeightFiles.open(folder), sanitize)


def load_files(
    model: nn.Module, files: StoredWeights, sanitize: Sanitize | None = None, paged: str | None = None
) -> list[str]:
    """Loads exactly the tensors of `files` into `model`; returns the names that were left out.

    A linear or an embedding that the files store quantised is replaced in `model` by its quantised form (see
    `stored_quantization` and `stored.base`). paged: the list of blocks that will be paged, whose tensors need not be
    read.

    Raises InputError that names the first tensor that is missing, unknown, of another shape, or packed differently from
    what their folder declares. `model` is unchanged in that case.
    """
    tensors, modules, ignored = _fitting(model, files, sanitize, paged)
    for path, module in modules.items():
        _put(model, path, module)
    model.load_weights(list(tensors.items()), strict=True)
    return ignored


def _fitting(
    model: nn.Module, files: StoredWeights, sanitize: Sanitize | None, paged: str | None
) -> tuple[Mapping[str, mx.array], dict[str, nn.Module], list[str]]:
    """The tensors for the model, the modules that must replace its own, by path, and the names left out."""
    stored = files.read() if paged is None or sanitize is not None else files.templates(f"{paged}.")
    sanitize = sanitize or (lambda stored: (stored, []))
    tensors, ignored = sanitize(stored)
    ignored = [*files.ignored, *ignored]

    def rename(path: str) -> str | None:
        return next((name.removesuffix(".weight") for name in sanitize({f"{path}.weight": mx.array(0.0)})[0]), None)

    linears = {path: linear for old, linear in files.linears.items() if (path := rename(old)) is not None}
    others = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in linears}
    try:
        modules = stored_linears(model, linears, tensors)
        modules |= quantized_modules(model, files.config, files.metadata, others, rename)
    except InputError as error:
        raise InputError(f"{files.source}: {error}") from error
    expected = {name: parameter.shape for name, parameter in tree_flatten(model.parameters())}
    for path, module in modules.items():
        del expected[f"{path}.weight"]
        expected |= {f"{path}.{name}": parameter.shape for name, parameter in tree_flatten(module.parameters())}
    if files.partial:
        ignored += sorted(tensors.keys() - expected.keys())
        tensors = {name: tensor for name, tensor in tensors.items() if name in expected}
    _check_names(files.source, tensors, expected)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            module = modules.get(name.rpartition(".")[0])
            quantized = isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)
            packing = f" ({module.bits} bits in groups of {module.group_size})" if module and quantized else ""
            raise InputError(
                f"{files.source}: tensor {name} has shape {tensors[name].shape}, expected {shape} "
                f"by config.json{packing}"
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


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises InputError if the file cannot be read, is too large, or holds no JSON object whose keys occur once.
    """
    try:
        if file.exists() and not file.is_file() and not file.is_dir():  # reading a pipe would wait for ever
            raise InputError(f"{file} is not a regular file, expected JSON")
        if (size := file.stat().st_size) > _LARGEST_JSON:
            raise InputError(f"{file}: {size} bytes, expected JSON of at most {_LARGEST_JSON}")
        value = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected a JSON object")
    return value
