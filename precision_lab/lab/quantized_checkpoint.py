"""A checkpoint written with linears quantised, in the layout that mlx-lm saves and `model.weights` loads.

The weights are quantised as they are stored. So the copy computes what the technique computes on the original, bit for
bit, in fp32 and in the dtype the original is stored in.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.model import weights
from precision_lab.model.quantized import Quantization
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.synthetic.checkpoint import replacing
from precision_lab.techniques.base import applied
from precision_lab.techniques.quantized_weights import QuantizedWeights

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and in all."""

MAX_SHARD_BYTES = 5 << 30
_BESIDE_WEIGHTS = 8 << 20
"""Room for headers and configurations."""

_STEMS = {"transformer": "diffusion_pytorch_model", "text_encoder": "model"}
_PREFIXES = {"transformer": "", "text_encoder": "model."}
"""What stands before the names of the modules in published files."""

_COPIED = ("scheduler", "tokenizer", "vae", "text_encoder", "transformer")


class _Component(NamedTuple):
    """Tensors under their published names, not evaluated, and the entry of config.json that says how to read them."""

    tensors: dict[str, mx.array]
    quantization: dict[str, Any]


def write(
    source: Checkpoint,
    techniques: Mapping[str, QuantizedWeights],
    out: Path,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes `source` with `techniques` applied to the folder `out`, which must be absent or empty.

    Components in which nothing is quantised are copied as they are; of a quantised text encoder the parts that
    text-to-image does not need are left out. Everything is written beside `out` and renamed at the end; memory holds
    one shard and one tensor of the original.

    Raises InputError if `out` exists and is not an empty folder, cannot be written, or the disk is too small; and
    where a technique does not fit the model.
    """
    quantised = _quantised(source, techniques)
    copied = [part for part in _COPIED if part not in quantised]
    for part in copied:
        if not (source.folder / part).is_dir():
            raise InputError(f"{source.folder}: no folder {part}, expected a whole checkpoint")
    files = [file for part in copied for file in sorted((source.folder / part).iterdir()) if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    total += sum(tensor.nbytes for component in quantised.values() for tensor in component.tensors.values())
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with replacing(out, total + _BESIDE_WEIGHTS) as folder:
        shutil.copyfile(source.folder / "model_index.json", folder / "model_index.json")
        for file in files:
            target = folder / file.parent.name / file.name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
            written(file.stat().st_size)
        for part, component in quantised.items():
            (folder / part).mkdir()
            config = weights.read_json(source.folder / part / "config.json")
            config |= {"quantization": component.quantization, "quantization_config": component.quantization}
            _write_json(folder / part / "config.json", config)
            _write_shards(folder / part, _STEMS[part], component.tensors, max_shard_bytes, written)


def _quantised(source: Checkpoint, techniques: Mapping[str, QuantizedWeights]) -> dict[str, _Component]:
    """The components that hold quantised modules once the techniques are applied."""
    components: dict[str, nn.Module] = {
        "text_encoder": source.text_encoder(mx.float32),
        "transformer": source.transformer(mx.float32),
    }
    found = {}
    with applied(components, techniques):
        for part, model in components.items():
            packed = {
                _PREFIXES[part] + site.path: Quantization(site.module.group_size, site.module.bits, site.module.mode)
                for site in walk({part: model})
                if isinstance(site.module, nn.QuantizedLinear | nn.QuantizedEmbedding)
            }
            if packed:
                tensors = {_PREFIXES[part] + name: array for name, array in tree_flatten(model.parameters())}
                found[part] = _Component(tensors, _entry(packed))
    if not found:
        raise InputError("technique: nothing is quantised in the end, expected a rule that does not keep its sites")
    return found


def _entry(packed: Mapping[str, Quantization]) -> dict[str, Any]:
    """The commonest quantisation, and those of the paths that have another."""
    common = Counter(packed.values()).most_common(1)[0][0]
    others = {path: quantization._asdict() for path, quantization in packed.items() if quantization != common}
    return {**common._asdict(), **others}


def _write_shards(
    folder: Path, stem: str, tensors: dict[str, mx.array], max_bytes: int, written: Callable[[int], None]
) -> None:
    """Empties `tensors`, so that what is written does not stay in memory."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    parts = _split(tensors, max_bytes)
    weight_map = {}
    for number, names in enumerate(parts, start=1):
        file = f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors" if len(parts) > 1 else f"{stem}.safetensors"
        shard = {name: tensors.pop(name) for name in names}
        for tensor in shard.values():
            mx.eval(tensor)  # one by one, or the originals of the whole shard would be in memory
        size = sum(tensor.nbytes for tensor in shard.values())
        mx.save_safetensors(str(folder / file), shard, metadata={"format": "mlx"})
        del shard
        mx.clear_cache()
        weight_map.update(dict.fromkeys(names, file))
        written(size)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / f"{stem}.safetensors.index.json", index)


def _split(tensors: Mapping[str, mx.array], max_bytes: int) -> list[list[str]]:
    """Consecutive names of at most `max_bytes` together; a larger tensor stands alone."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
