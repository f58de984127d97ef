"""Writes a checkpoint in another storage: plain numbers, or quantised linears in the format that mlx-lm saves.

The stored weights are quantised without a cast. The copy therefore computes the same bits as the technique applied to
the original, in fp32 and in the dtype in which the original is stored.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from precision_lab.errors import InputError, first_line
from precision_lab.instrument.sites import Components, Site, walk
from precision_lab.model.casting import cast_array
from precision_lab.model.coded import CodedLinear, linear_weight
from precision_lab.model.quantized import Quantization, decoded_weight, packing_of
from precision_lab.record.files import NotWrittenError, read_json, replacing, write_json, writing
from precision_lab.record.layout import Layout
from precision_lab.record.origin import LABEL
from precision_lab.techniques.base import applied
from precision_lab.techniques.quantized_weights import QuantizedWeights

Progress = Callable[[int, int], None]
"""Called with the number of bytes written so far and the total."""

MAX_SHARD_BYTES = 5 << 30
_DECLARATIONS = ("quantization", "quantization_config")
_BESIDE_WEIGHTS = 8 << 20
"""Bytes reserved for headers and configurations."""


class Part(Protocol):
    """A component on disk. Weight files start with `stem`; tensor names are `prefix` and the path of the module."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def stem(self) -> str: ...

    @property
    def prefix(self) -> str: ...


@runtime_checkable
class Quantizable(Protocol):
    """A source whose checkpoint can be written with quantised linears."""

    @property
    def layout(self) -> Layout:
        """The layout of the checkpoint."""

    def folder(self) -> Path:
        """The path of the checkpoint."""

    def files(self) -> Sequence[str]:
        """Names of the files of a complete checkpoint outside its subfolders."""

    def folders(self) -> Sequence[str]:
        """Names of the subfolders of a complete checkpoint."""

    def apart(self) -> Sequence[str]:
        """Names of the components whose weights are not in the folder; its subfolders have their configurations."""

    def parts(self) -> Mapping[str, Part]:
        """Components that may be quantised, by subfolder. They compute in fp32 with the stored weights."""


class _Component(NamedTuple):
    """Unevaluated tensors under their published names, and the entry of config.json that describes their format.

    The entry is empty for plain numbers.
    """

    tensors: dict[str, mx.array]
    quantization: dict[str, Any]


@dataclass(frozen=True)
class _Decoded:
    """A technique that makes plain linears and embeddings of those at `sites`, with values of `dtype`."""

    sites: Sequence[str]
    dtype: mx.Dtype
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = True

    def rewrite(self, site: Site) -> nn.Module:
        module: Any = site.module
        if isinstance(module, nn.QuantizedEmbedding):
            plain: Any = nn.Embedding(1, 1)
            plain.weight = decoded_weight(module, mx.float32).astype(self.dtype)
            return plain
        plain = nn.Linear(1, 1, bias=False)
        plain.weight = linear_weight(module).astype(self.dtype)
        if "bias" in module:
            plain.bias = module.bias
        return plain


def write(
    source: Quantizable,
    techniques: Mapping[str, QuantizedWeights],
    out: Path,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: mx.Dtype | None = None,
) -> None:
    """Writes `source` with `techniques` applied to the folder `out`, which must be absent or empty.

    dtype: decodes linears that are stored in another way and rounds all weights to this dtype before the techniques
    apply; in the components that are apart or, without any, in all.

    Components without quantised modules are copied unchanged. Components that are written omit tensors that the subject
    does not read. The files are written next to `out` and renamed at the end. Memory holds one shard, one tensor of the
    original, and packed weights of a format that is read at once.

    Raises InputError if `out` exists and is not an empty folder, if it cannot be written, if the disk is too small, if
    a technique does not fit the model, or for values that float16 does not hold.
    """
    original, parts, apart = source.folder(), source.parts(), source.apart()
    changed = [name for name in parts if name in apart or (dtype is not None and not apart)]
    quantised = _components(parts, source.layout, techniques, changed, dtype)
    copied = [folder for folder in source.folders() if folder not in quantised]
    for folder in copied:
        if not (original / folder).is_dir():
            raise InputError(f"{original}: no folder {folder}, expected a whole checkpoint")
    files = [original / name for name in source.files()]
    files += [file for folder in copied for file in sorted((original / folder).iterdir()) if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    total += sum(tensor.nbytes for component in quantised.values() for tensor in component.tensors.values())
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with replacing(out, total + _BESIDE_WEIGHTS) as temporary, writing(out):
        for file in files:
            target = temporary / file.relative_to(original)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
            written(file.stat().st_size)
        if apart:  # what the base says of the origin of its weights is not true of these
            for name in source.files():
                about = read_json(original / name)
                if about.pop(LABEL, None) is not None:
                    write_json(temporary / name, about)
        for name, component in quantised.items():
            (temporary / name).mkdir()
            config = read_json(original / name / "config.json")
            for key in _DECLARATIONS:
                config.pop(key, None)
            if component.quantization:
                config |= dict.fromkeys(_DECLARATIONS, component.quantization)
            write_json(temporary / name / "config.json", config)
            _write_shards(temporary / name, parts[name].stem, component.tensors, max_shard_bytes, written)


def _components(
    parts: Mapping[str, Part],
    layout: Layout,
    techniques: Mapping[str, QuantizedWeights],
    changed: Collection[str],
    dtype: mx.Dtype | None,
) -> dict[str, _Component]:
    """The components in `changed`, and those that contain quantised modules after `techniques` are applied."""
    found = {}
    components = Components({name: part.module for name, part in parts.items()}, layout)
    stored = [
        str(site)
        for site in walk(components)
        if site.component in changed
        and isinstance(site.module, CodedLinear | nn.QuantizedLinear | nn.QuantizedEmbedding)
    ]
    decoded = {} if dtype is None or not stored else {"dtype": _Decoded(tuple(stored), dtype)}
    with applied(components, decoded), applied(components, techniques):
        for name, part in parts.items():
            coded = next((site for site in walk({name: part.module}) if isinstance(site.module, CodedLinear)), None)
            if coded is not None:
                raise InputError(
                    f"technique: {coded} is stored as {coded.module.coding.name}, which this layout of files cannot "
                    "state; expected linears that are plain or quantised by MLX; dtype=bfloat16 decodes them"
                )
            packed = {
                part.prefix + site.path: packing_of(site.module)
                for site in walk({name: part.module})
                if isinstance(site.module, nn.QuantizedLinear | nn.QuantizedEmbedding)
            }
            scaled = next((path for path, packing in packed.items() if packing.tensor_scale), None)
            if scaled is not None:
                raise InputError(
                    f"technique: {name}:{scaled} has a scale a tensor, which this layout of files cannot state; "
                    "expected a rule without tensor_scale"
                )
            if packed or name in changed:
                tensors = {part.prefix + path: array for path, array in tree_flatten(part.module.parameters())}
                if dtype is not None and name in changed:
                    kept = {f"{path}.{array}" for path in packed for array in ("scales", "biases")}
                    tensors = {
                        path: array if path in kept else cast_array(array, dtype, mx.float32)
                        for path, array in tensors.items()
                    }
                found[name] = _Component(tensors, _entry(packed) if packed else {})
    if not found:
        raise InputError("technique: nothing is quantised in the end, expected a rule that does not keep its sites")
    return found


def _entry(packed: Mapping[str, Quantization]) -> dict[str, Any]:
    """The most common quantisation, and the exceptions by path."""
    common = Counter(packed.values()).most_common(1)[0][0]
    others = {path: quantization.arguments for path, quantization in packed.items() if quantization != common}
    return {**common.arguments, **others}


def _write_shards(
    folder: Path, stem: str, tensors: dict[str, mx.array], max_bytes: int, written: Callable[[int], None]
) -> None:
    """Writes `tensors` in shards, and removes each from the mapping to free its memory."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    parts = _split(tensors, max_bytes)
    weight_map = {}
    for number, names in enumerate(parts, start=1):
        file = f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors" if len(parts) > 1 else f"{stem}.safetensors"
        shard = {name: tensors.pop(name) for name in names}
        for name, tensor in shard.items():
            mx.eval(tensor)  # singly: otherwise the originals of the whole shard would be in memory
            if tensor.dtype == mx.float16 and mx.isinf(tensor).any():
                raise InputError(f"tensor {name} has values that float16 does not hold, expected bfloat16 or float32")
        size = sum(tensor.nbytes for tensor in shard.values())
        try:
            mx.save_safetensors(str(folder / file), shard, metadata={"format": "mlx"})
        except RuntimeError as error:  # a full disk
            raise NotWrittenError(f"{file} cannot be written: {first_line(error)}") from error
        del shard
        mx.clear_cache()
        weight_map.update(dict.fromkeys(names, file))
        written(size)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _split(tensors: Mapping[str, mx.array], max_bytes: int) -> list[list[str]]:
    """Splits the names, in order, into groups of at most `max_bytes`. A larger tensor forms its own group."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups
