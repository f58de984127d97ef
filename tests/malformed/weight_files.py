"""Weights of a tiny transformer in every layout that is read, as parts that mutations change."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file

from precision_lab.model.codings.nf4 import NUMBERS, Nf4, dynamic_map
from precision_lab.synthetic import PRESETS, make
from tests.model.test_quantized_checkpoints import mflux_name

DTYPES = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint8": "U8",
    "uint32": "U32",
    "float8_e4m3fn": "F8_E4M3",
    "int64": "I64",
}
_WEIGHTS = "diffusion_pytorch_model.safetensors"
Tensors = dict[str, np.ndarray]


def checkpoint_of_one_block(folder: Path) -> Path:
    """Writes a whole checkpoint whose transformer and text encoder have one block."""
    micro = PRESETS["micro"]
    shape = replace(
        micro,
        transformer=replace(micro.transformer, num_layers=1),
        text_encoder=replace(micro.text_encoder, num_hidden_layers=1),
    )
    make(shape, folder)
    return folder


@dataclass
class Safetensors:
    """A file: its entries in order, so that a name can occur twice, its metadata, and the bytes of the tensors."""

    entries: list[tuple[str, Any]]
    data: bytearray
    metadata: Any = None

    @classmethod
    def of(cls, tensors: Tensors, metadata: Any = None) -> Safetensors:
        entries: list[tuple[str, Any]] = []
        data = bytearray()
        for name, array in tensors.items():
            content = np.ascontiguousarray(array).tobytes()
            place = [len(data), len(data) + len(content)]
            entries.append(
                (name, {"dtype": DTYPES[str(array.dtype)], "shape": list(array.shape), "data_offsets": place})
            )
            data += content
        return cls(entries, data, metadata)

    def names(self, end: str = "") -> list[str]:
        return [name for name, _ in self.entries if name.endswith(end)]

    def entry(self, name: str) -> Any:
        return dict(self.entries)[name]

    def remove(self, name: str) -> None:
        self.entries = [(each, entry) for each, entry in self.entries if each != name]

    def rename(self, name: str, new: str) -> None:
        self.entries = [(new if each == name else each, entry) for each, entry in self.entries]

    def add(self, name: str, array: np.ndarray) -> None:
        """Adds a tensor, or puts it in the place of that of the same name."""
        self.remove(name)
        content = np.ascontiguousarray(array).tobytes()
        place = [len(self.data), len(self.data) + len(content)]
        self.entries.append(
            (name, {"dtype": DTYPES[str(array.dtype)], "shape": list(array.shape), "data_offsets": place})
        )
        self.data += content

    def header(self) -> bytes:
        items = list(self.entries)
        if self.metadata is not None:
            items.append(("__metadata__", self.metadata))
        return ("{" + ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in items) + "}").encode()

    def content(self) -> bytes:
        header = self.header()
        return struct.pack("<Q", len(header)) + header + bytes(self.data)


@dataclass
class Gguf:
    """A file: version, metadata as (key, type, bytes), tensors as (name, sizes, type, offset), alignment and data."""

    metadata: list[tuple[bytes, int, bytes]]
    tensors: list[list[Any]]
    data: bytearray
    version: int = 3
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> Gguf:
        """Matrices in Q8_0 or, where 256 divides their rows, in Q4_K; the rest in fp32."""
        found, data = [], bytearray()
        for name, array in tensors.items():
            kind = gguf.GGMLQuantizationType.F32
            content = array.astype(np.float32).tobytes()
            if array.ndim == 2:
                kind = gguf.GGMLQuantizationType.Q4_K if array.shape[1] % 256 == 0 else gguf.GGMLQuantizationType.Q8_0
                content = _blocks(array.astype(np.float32), kind)
            data += bytes(-len(data) % 32)
            found.append([name.encode(), list(reversed(array.shape)), int(kind), len(data)])
            data += content
        metadata = [
            (b"general.architecture", 8, text("qwen_image")),
            (b"general.quantization_version", 4, struct.pack("<I", 2)),
        ]
        return cls(metadata, found, data)

    def tensor(self, name: str) -> list[Any]:
        return next(each for each in self.tensors if each[0] == name.encode())

    def header(self) -> bytes:
        count = self.counts
        start = b"GGUF" + struct.pack(
            "<IQQ", self.version, count.get("tensors", len(self.tensors)), count.get("keys", len(self.metadata))
        )
        for key, kind, value in self.metadata:
            start += text(key) + struct.pack("<I", kind) + value
        for name, sizes, kind, offset in self.tensors:
            start += text(name) + struct.pack("<I", count.get(f"rank {name.decode(errors='replace')}", len(sizes)))
            start += b"".join(struct.pack("<Q", size % 2**64) for size in sizes) + struct.pack("<IQ", kind, offset)
        return start

    def content(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % 32) + bytes(self.data)


@dataclass
class Weights:
    """What `model.path` or an adapter's path names: a file, or a folder with a configuration."""

    file: Safetensors | Gguf
    suffix: str = ".safetensors"
    config: dict[str, Any] | None = None
    config_name: str = "config.json"
    weights_name: str = _WEIGHTS
    adapter: bool = False

    def write(self, path: Path) -> Path:
        """Writes them to `path`, which gets the suffix of a single file."""
        if self.config is None:
            path = path.with_name(path.name + self.suffix)
            path.write_bytes(self.file.content())
            return path
        path.mkdir()
        (path / self.config_name).write_text(json.dumps(self.config))
        (path / self.weights_name).write_bytes(self.file.content())
        return path


def text(value: str | bytes) -> bytes:
    """A text as GGUF stores it."""
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def layouts(checkpoint: Path) -> dict[str, Callable[[], Weights]]:
    """The transformer of `checkpoint` in each layout, and adapters for it, all made anew by each call."""
    tensors: Tensors = {
        name: array
        for file in (checkpoint / "transformer").glob("*.safetensors")
        for name, array in load_file(file).items()
    }
    config = json.loads((checkpoint / "transformer" / "config.json").read_text())
    prefixed = {f"model.diffusion_model.{name}": array for name, array in tensors.items()}
    return {
        "gguf": lambda: Weights(Gguf.of(tensors), ".gguf"),
        "comfy float": lambda: Weights(Safetensors.of(prefixed)),
        "comfy float8": lambda: Weights(Safetensors.of(_float8(tensors, ""))),
        "comfy scale_weight": lambda: Weights(Safetensors.of(_float8(prefixed, ".scale_weight"))),
        "comfy comfy_quant": lambda: Weights(Safetensors.of(_float8(tensors, ".comfy_quant"))),
        "comfy metadata": lambda: Weights(_listed(_float8(prefixed, ".weight_scale"))),
        "published": lambda: Weights(Safetensors.of(tensors), config=dict(config)),
        "float8 folder": lambda: Weights(
            Safetensors.of(_float8(tensors, ".weight_scale")),
            config={**config, "quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
        ),
        "nf4": lambda: _nf4(tensors, config),
        "nf4 nested": lambda: _nf4(tensors, config, nested=True),
        "mlx": lambda: _mlx(tensors, config),
        "mflux": lambda: _mflux(tensors),
        "lora comfy": lambda: _lora(tensors, "diffusion_model.", ("lora_down", "lora_up"), alpha=True),
        "lora peft": lambda: _lora(tensors, "base_model.model.", ("lora_A", "lora_B"), config=True),
        "lora diffusers": lambda: _lora(tensors, "transformer.", ("lora_A", "lora_B")),
        "lokr": lambda: _lokr(tensors),
    }


def _blocks(array: np.ndarray, kind: gguf.GGMLQuantizationType) -> bytes:
    if kind == gguf.GGMLQuantizationType.Q8_0:
        return gguf.quants.quantize(array, kind).tobytes()
    from precision_lab.model.codings.gguf.super_blocks import Q4_K

    return np.array(Q4_K().encode(mx.array(array))["weight"]).tobytes()


def _is_linear(name: str, array: np.ndarray) -> bool:
    return name.endswith(".weight") and array.ndim == 2 and "transformer_blocks." in name


def _float8(tensors: Tensors, layout: str) -> Tensors:
    found: Tensors = {}
    for name, array in tensors.items():
        if not _is_linear(name, array):
            found[name] = array
            continue
        path, wide = name.removesuffix(".weight"), array.astype(np.float32)
        scale = np.float32(np.abs(wide).max() / 448 if layout else 1)
        found[name] = (wide / scale).astype(ml_dtypes.float8_e4m3fn)
        if layout == ".comfy_quant":
            quant = json.dumps({"format": "float8_e4m3fn"}).encode()
            found |= {f"{path}.weight_scale": np.array(scale), f"{path}.comfy_quant": np.frombuffer(quant, np.uint8)}
        elif layout:
            found[path + layout] = np.array(scale)
    if layout == ".scale_weight":
        found["model.diffusion_model.scaled_fp8"] = np.zeros(0, ml_dtypes.float8_e4m3fn)
    return found


def _listed(tensors: Tensors) -> Safetensors:
    layers = {
        name.removesuffix(".weight_scale"): {"format": "float8_e4m3fn"}
        for name in tensors
        if name.endswith(".weight_scale")
    }
    return Safetensors.of(tensors, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})})


def _nf4(tensors: Tensors, config: Mapping[str, Any], nested: bool = False) -> Weights:
    found: Tensors = {}
    for name, array in tensors.items():
        if not _is_linear(name, array):
            found[name] = array
            continue
        coded = Nf4(64, nested).encode(mx.array(array.astype(np.float32)))
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(array.shape)}
        found |= {
            name: np.array(coded["weight"]).reshape(-1, 1),
            f"{name}.absmax": np.array(coded["absmax"]).reshape(-1),
            f"{name}.quant_map": NUMBERS.astype(np.float32),
        }
        if nested:
            state |= {"nested_blocksize": 256, "nested_offset": float(coded["nested_offset"])}
            found[f"{name}.nested_absmax"] = np.array(coded["nested_absmax"])
            found[f"{name}.nested_quant_map"] = dynamic_map().astype(np.float32)
        found[f"{name}.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return Weights(Safetensors.of(found), config={**config, "quantization_config": method})


def _packed(tensors: Tensors) -> Tensors:
    found: Tensors = {}
    for name, array in tensors.items():
        if not _is_linear(name, array):
            found[name] = array
            continue
        packed = mx.quantize(mx.array(array.astype(np.float32)), group_size=64, bits=4)
        ends = ("weight", "scales", "biases")
        path = name.removesuffix(".weight")
        found |= {f"{path}.{end}": np.array(each) for end, each in zip(ends, packed, strict=True)}
    return found


def _mlx(tensors: Tensors, config: Mapping[str, Any]) -> Weights:
    entry = {"group_size": 64, "bits": 4, "mode": "affine"}
    return Weights(Safetensors.of(_packed(tensors)), config={**config, "quantization": entry})


def _mflux(tensors: Tensors) -> Weights:
    named = {mflux_name(name): array for name, array in _packed(tensors).items()}
    metadata = {"quantization_level": "4", "mflux_version": "0.24.0"}
    return Weights(
        Safetensors.of(named, metadata), config={}, config_name="tokenizer.json", weights_name="0.safetensors"
    )


def _lora(tensors: Tensors, prefix: str, ends: tuple[str, str], alpha: bool = False, config: bool = False) -> Weights:
    rng, found = np.random.default_rng(0), {}
    for name, array in tensors.items():
        if _is_linear(name, array) and ".attn." in name:
            path = prefix + name.removesuffix(".weight")
            shapes = ((4, array.shape[1]), (array.shape[0], 4))
            for end, shape in zip(ends, shapes, strict=True):
                found[f"{path}.{end}.weight"] = rng.standard_normal(shape, np.float32)
            if alpha:
                found[f"{path}.alpha"] = np.array(4, np.float32)
    if not config:
        return Weights(Safetensors.of(found), adapter=True)
    peft = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    return Weights(
        Safetensors.of(found),
        config=peft,
        config_name="adapter_config.json",
        weights_name="adapter_model.safetensors",
        adapter=True,
    )


def _lokr(tensors: Tensors) -> Weights:
    rng, found = np.random.default_rng(1), {}
    for name, array in tensors.items():
        if _is_linear(name, array) and ".attn." in name:
            path = f"lycoris_{name.removesuffix('.weight').replace('.', '_')}"
            found[f"{path}.lokr_w1"] = rng.standard_normal((4, 4), np.float32)
            found[f"{path}.lokr_w2"] = rng.standard_normal((array.shape[0] // 4, array.shape[1] // 4), np.float32)
    return Weights(Safetensors.of(found), adapter=True)
