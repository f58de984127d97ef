"""Mutations of files of weights: each changes one thing, and says what a refusal must name."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple

import numpy as np

from tests.malformed.weight_files import Gguf, Safetensors, Weights, text

NAN = np.array(math.nan, np.float32)


class Mutant(NamedTuple):
    """How the changed file is written, and what is expected.

    content: its bytes. culprits: of which a refusal must name one, besides the file; empty where only the file is at
    fault. fatal: whether it must be refused.
    """

    content: bytes
    culprits: tuple[str, ...] = ()
    fatal: bool = True


Mutate = Callable[[Weights, Random], Mutant]


def _tensor(file: Safetensors, random: Random) -> tuple[str, Any]:
    """A tensor of more than one number; an alpha may have another type."""
    name = random.choice([name for name, entry in file.entries if np.diff(entry["data_offsets"])[0] > 4])
    return name, file.entry(name)


def _entry(change: Callable[[dict[str, Any], Safetensors], object], fatal: bool = True) -> Mutate:
    """A change of the entry of one tensor."""

    def mutate(weights: Weights, random: Random) -> Mutant:
        assert isinstance(weights.file, Safetensors)
        name, entry = _tensor(weights.file, random)
        change(entry, weights.file)
        return Mutant(weights.file.content(), (name,), fatal)

    return mutate


def _raw(change: Callable[[bytes, Random], bytes]) -> Mutate:
    """A change of the bytes of the file."""
    return lambda weights, random: Mutant(change(weights.file.content(), random))


def _header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def _with_header(header: bytes) -> Mutate:
    def mutate(weights: Weights, random: Random) -> Mutant:
        assert isinstance(weights.file, Safetensors)
        return Mutant(_header(header) + bytes(weights.file.data))

    return mutate


def _named(change: Callable[[Safetensors, Random], tuple[str, ...]], fatal: bool = True) -> Mutate:
    """A change of the tensors or the metadata; it returns the culprits."""

    def mutate(weights: Weights, random: Random) -> Mutant:
        assert isinstance(weights.file, Safetensors)
        culprits = change(weights.file, random)
        return Mutant(weights.file.content(), culprits, fatal)

    return mutate


def _config(fatal: bool = True, **changes: Any) -> Mutate:
    """Other entries in the configuration; None removes one."""

    def mutate(weights: Weights, random: Random) -> Mutant:
        assert weights.config is not None
        for key, value in changes.items():
            if value is None:
                weights.config.pop(key)
            else:
                weights.config[key] = weights.config[key] | value if isinstance(value, dict) else value
        inner = (key for value in changes.values() if isinstance(value, dict) for key in value)
        method = ("bitsandbytes",) if "quantization_config" in changes else ()
        return Mutant(weights.file.content(), (*changes, *inner, *method), fatal)

    return mutate


def _short(name: str) -> str:
    """The beginning of a name that a message shows."""
    return name[:60]


def _removed(file: Safetensors, random: Random) -> tuple[str, ...]:
    name, _ = _tensor(file, random)
    file.remove(name)
    return _path(name)


def _path(name: str) -> tuple[str, ...]:
    """The tensor, or the linear that it is of."""
    bare = name.removeprefix("model.diffusion_model.").removeprefix("diffusion_model.")
    return (
        name,
        bare,
        re.split(r"\.(?:weight|scales|biases|scale_weight|weight_scale|comfy_quant|lora_\w+|lokr_\w+|alpha)\b", bare)[
            0
        ],
    )


def _twice(file: Safetensors, random: Random) -> tuple[str, ...]:
    name, entry = _tensor(file, random)
    file.entries.append((name, dict(entry)))
    return (name,)


def _own_prefix(file: Safetensors, random: Random) -> tuple[str, ...]:
    name = random.choice([name for name in file.names() if "transformer_blocks" in name])
    new = f"other_prefix.{name}" if not name.startswith("model.") else name.removeprefix("model.")
    file.rename(name, new)
    return _path(name) + _path(new)


def _overlapping(file: Safetensors, random: Random) -> tuple[str, ...]:
    one, entry = _tensor(file, random)
    other = next(
        name for name, each in file.entries if name != one and each["data_offsets"][0] < each["data_offsets"][1]
    )
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    begin = file.entry(other)["data_offsets"][0]
    entry["data_offsets"] = [begin, begin + size]
    return one, other


def _unfit(file: Safetensors, random: Random) -> tuple[str, ...]:
    """Another shape with as many numbers."""
    name = random.choice([name for name, entry in file.entries if math.prod(entry["shape"]) > 8])
    entry = file.entry(name)
    entry["shape"] = [math.prod(entry["shape"]) // 2, 2]
    return _path(name)


SAFETENSORS: Mapping[str, Mutate] = {
    "cut": _raw(lambda content, random: content[: random.randrange(8, len(content) - 1)]),
    "cut in the length": _raw(lambda content, random: content[: random.randrange(8)]),
    "zeros": _raw(lambda content, random: bytes(4096)),
    "no header": _raw(lambda content, random: struct.pack("<Q", 0) + content[8:]),
    "huge header": _raw(lambda content, random: struct.pack("<Q", 1 << 62) + content[8:]),
    "negative header": _raw(lambda content, random: struct.pack("<q", -8) + content[8:]),
    "header into the data": _raw(
        lambda content, random: struct.pack("<Q", struct.unpack("<Q", content[:8])[0] + 16) + content[8:]
    ),
    "no JSON": _with_header(b"{'a': 1}"),
    "no UTF-8": _with_header(b'{"\xff": 1}'),
    "a list": _with_header(b"[1]"),
    "deep": _with_header(b'{"a":' * 20_000),
    "a huge number": _with_header(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}'),
    "millions of objects": _raw(lambda content, random: _header(b'{"a":[' + b"{}," * 5_000_000 + b"1]}")),
    "a huge but whole header": _raw(lambda content, random: _header(b'{"a": "' + b" " * (20 << 20) + b'"}')),
    "entry null": _with_header(b'{"a": null}'),
    "NaN": _with_header(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}'),
    "unknown dtype": _entry(lambda entry, file: entry.update(dtype="BF17")),
    "wide dtype": _entry(lambda entry, file: entry.update(dtype="F64")),
    "wrong dtype": _entry(lambda entry, file: entry.update(dtype={1: "BOOL", 2: "I16", 4: "I32"}[_width(entry)])),
    "long dtype": _entry(lambda entry, file: entry.update(dtype="F" * 100_000)),
    "dtype list": _entry(lambda entry, file: entry.update(dtype=["F32"])),
    "huge shape": _entry(lambda entry, file: entry.update(shape=[1 << 40, 1 << 40])),
    "overflowing shape": _entry(lambda entry, file: entry.update(shape=[1 << 62, 4, *entry["shape"]])),
    "negative shape": _entry(lambda entry, file: entry.update(shape=[-1, *entry["shape"]])),
    "many dimensions": _entry(lambda entry, file: entry.update(shape=[1] * 5000 + entry["shape"])),
    "fractional shape": _entry(lambda entry, file: entry.update(shape=[2.5])),
    "no shape": _entry(lambda entry, file: entry.pop("shape")),
    "zero in the shape": _entry(lambda entry, file: entry.update(shape=[0, *entry["shape"]])),
    "beyond the end": _entry(
        lambda entry, file: entry.update(data_offsets=[n + len(file.data) for n in entry["data_offsets"]])
    ),
    "huge offsets": _entry(lambda entry, file: entry.update(data_offsets=[1 << 62, (1 << 62) + 4])),
    "reversed offsets": _entry(lambda entry, file: entry.update(data_offsets=entry["data_offsets"][::-1])),
    "one byte less": _entry(
        lambda entry, file: entry.update(data_offsets=[entry["data_offsets"][0], entry["data_offsets"][1] - 1])
    ),
    "three offsets": _entry(lambda entry, file: entry["data_offsets"].append(0)),
    "overlapping": _named(_overlapping),
    "twice": _named(_twice),
    "removed": _named(_removed, fatal=False),
    "another prefix": _named(_own_prefix),
    "unfit": _named(_unfit),
    "long name": _named(lambda file, random: _add(file, "transformer_blocks.0." + "x" * 1_000_000), fatal=False),
    "control characters": _named(lambda file, random: _add(file, "img_in.\x1b[2J\n\0.weight"), fatal=False),
    "another dtype of metadata": _named(lambda file, random: _about(file, 3)),
    "a number in the metadata": _named(lambda file, random: _about(file, {"a": 3})),
}


def _width(entry: Mapping[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return (end - begin) // max(math.prod(entry["shape"]), 1)


def _add(file: Safetensors, name: str) -> tuple[str, ...]:
    file.add(name, np.ones(3, np.float32))
    return (*_path(_short(name)), "x1b")


def _about(file: Safetensors, metadata: Any) -> tuple[str, ...]:
    file.metadata = metadata
    return ("__metadata__",)


def _put(end: str, array: np.ndarray, fatal: bool = True) -> Mutate:
    """Another tensor in place of one whose name ends in `end`."""

    def change(file: Safetensors, random: Random) -> tuple[str, ...]:
        name = random.choice(file.names(end))
        file.add(name, array)
        return _path(name)

    return _named(change, fatal)


def _drop(end: str, fatal: bool = True) -> Mutate:
    def change(file: Safetensors, random: Random) -> tuple[str, ...]:
        name = random.choice(file.names(end))
        file.remove(name)
        return _path(name)

    return _named(change, fatal)


def _rename(end: str, new: str, fatal: bool = True) -> Mutate:
    def change(file: Safetensors, random: Random) -> tuple[str, ...]:
        name = random.choice(file.names(end))
        file.rename(name, name.removesuffix(end) + new)
        return _path(name) + _path(name.removesuffix(end) + new)

    return _named(change, fatal)


def _bytes(content: str | bytes) -> np.ndarray:
    return np.frombuffer(content.encode() if isinstance(content, str) else content, np.uint8)


def _state(**changes: Any) -> Mutate:
    """Another entry in the description of a linear in NF4."""

    def change(file: Safetensors, random: Random) -> tuple[str, ...]:
        name = random.choice(file.names("bitsandbytes__nf4"))
        begin, end = file.entry(name)["data_offsets"]
        state = json.loads(bytes(file.data[begin:end])) | changes
        file.add(name, _bytes(json.dumps(state)))
        return (name.partition(".quant_state")[0],)

    return _named(change)


def _stated(metadata: Any, culprit: str, fatal: bool = True) -> Mutate:
    return _named(lambda file, random: (_about(file, metadata), (culprit,))[1], fatal)


_SCALES = (".scale_weight", ".weight_scale")
INF = np.array(math.inf, np.float32)
_QUANT = "_quantization_metadata"


def _scaled(end: str) -> dict[str, Mutate]:
    """Mutations of float8 files whose scales end in `end`."""
    return {
        "no scale": _drop(end),
        "a scale without its weight": _drop("attn.to_q.weight"),
        "NaN scale": _put(end, NAN),
        "infinite scale": _put(end, INF),
        "scale of integers": _put(end, np.array(3, np.uint8)),
        "three scales": _put(end, np.ones(3, np.float32)),
        "empty scale": _put(end, np.ones(0, np.float32)),
        "scale renamed": _rename(end, ".scales"),
        "both scales": _named(lambda file, random: _second(file, random, end)),
        "weight of three dimensions": _put("attn.to_q.weight", np.zeros((8, 8, 64), np.uint8)),
        "bytes as bias": _put("attn.to_q.bias", np.zeros(64, np.uint8)),
        "marks another model": _named(lambda file, random: _add(file, "__index_timestep_zero__")),
    }


def _second(file: Safetensors, random: Random, end: str) -> tuple[str, ...]:
    name = random.choice(file.names(end))
    other = next(each for each in _SCALES if each != end)
    file.add(name.removesuffix(end) + other, np.array(2, np.float32))
    return _path(name)


def _with_inputs(file: Safetensors, random: Random, scale: float) -> tuple[str, ...]:
    name = random.choice(file.names(".weight_scale")).removesuffix(".weight_scale") + ".input_scale"
    file.add(name, np.array(scale, np.float32))
    return _path(name)


OF_A_LAYOUT: Mapping[str, Mapping[str, Mutate]] = {
    "comfy scale_weight": _scaled(".scale_weight"),
    "comfy comfy_quant": _scaled(".weight_scale")
    | {
        "no JSON": _put(".comfy_quant", _bytes("{")),
        "deep JSON": _put(".comfy_quant", _bytes('{"a":' * 9000)),
        "a huge description": _put(".comfy_quant", _bytes(" " * 200_000 + "{}")),
        "unknown format": _put(".comfy_quant", _bytes('{"format": "float3"}')),
        "format twice": _put(".comfy_quant", _bytes('{"format": "nvfp4", "format": "float8_e4m3fn"}')),
        "no format": _put(".comfy_quant", _bytes("{}")),
    },
    "comfy metadata": _scaled(".weight_scale")
    | {
        "no JSON": _stated({_QUANT: "{"}, _QUANT),
        "a list": _stated({_QUANT: "[]"}, _QUANT),
        "layers a list": _stated({_QUANT: '{"layers": []}'}, _QUANT),
        "layer null": _stated({_QUANT: '{"layers": {"a": null}}'}, "a"),
        "unknown layer": _stated({_QUANT: '{"layers": {"a.b": {"format": "float8_e4m3fn"}}}'}, "a.b"),
        "unknown format": _stated({_QUANT: '{"layers": {"a.b": {"format": "float9"}}}'}, "a.b"),
    },
    "comfy float8": {"bytes as bias": _put("attn.to_q.bias", np.zeros(64, np.uint8))},
    "comfy float": {
        "a scale": _named(lambda file, random: _add(file, "model.diffusion_model.img_in.scale_weight")),
        "marks another model": _named(lambda file, random: _add(file, "model.diffusion_model.__index_timestep_zero__")),
    },
    "float8 folder": _scaled(".weight_scale")
    | {
        "both scales": _rename(".weight_scale", ".scale_weight"),
        "negative scale of inputs": _named(lambda file, random: _with_inputs(file, random, -1.0)),
        "NaN scale of inputs": _named(lambda file, random: _with_inputs(file, random, math.nan)),
        "an unknown algorithm": _config(quantization_config={"quant_algo": "FP7"}),
        "algorithm a list": _config(quantization_config={"quant_algo": ["FP8"]}),
        "another program's": _config(quantization_config={"quant_method": "gptq"}),
        "no groups": _config(quantization_config={"quant_method": "compressed-tensors"}),
        "groups a list": _config(quantization_config={"quant_method": "compressed-tensors", "config_groups": [1]}),
        "method a list": _config(quantization_config={"quant_method": ["modelopt"]}),
    },
    "nf4": {
        "no state": _drop("bitsandbytes__nf4"),
        "no magnitudes": _drop(".absmax"),
        "no table": _drop(".quant_map"),
        "another table": _put(".quant_map", np.linspace(-1, 1, 16, dtype=np.float32)),
        "a table of NaN": _put(".quant_map", np.full(16, math.nan, np.float32)),
        "magnitudes of another type": _put(".absmax", np.ones(64, np.float16)),
        "too few magnitudes": _put(".absmax", np.ones(3, np.float32)),
        "NaN magnitudes": _put("attn.to_q.weight.absmax", np.full(64, math.nan, np.float32), fatal=False),
        "state no JSON": _put("bitsandbytes__nf4", _bytes("}")),
        "state no UTF-8": _put("bitsandbytes__nf4", _bytes(b"\xff\xfe\xfd")),
        "state a list": _put("bitsandbytes__nf4", _bytes("[]")),
        "state huge": _put("bitsandbytes__nf4", np.full(100_000, 32, np.uint8)),
        "another kind": _state(quant_type="fp4"),
        "blocks of 63": _state(blocksize=63),
        "blocks of a text": _state(blocksize="64"),
        "another shape": _state(shape=[32, 32]),
        "a huge shape": _state(shape=[1 << 40, 1 << 40]),
        "a shape of texts": _state(shape=["64", "64"]),
        "no method": _config(quantization_config=None),
        "another method": _config(quantization_config={"quant_method": "awq"}),
        "method a list": _config(quantization_config=[1]),
    },
    "nf4 nested": {
        "NaN offset": _state(nested_offset=math.nan),
        "no offset": _state(nested_offset=None),
        "nested blocks of 3": _state(nested_blocksize=3),
        "no nested magnitudes": _drop(".nested_absmax"),
        "NaN nested magnitudes": _put("attn.to_q.weight.nested_absmax", np.full(1, math.nan, np.float32)),
        "another nested table": _put(".nested_quant_map", np.zeros(256, np.float32)),
    },
    "mlx": {
        "no scales": _drop(".scales"),
        "no biases": _drop(".biases"),
        "no packed weight": _drop("attn.to_q.weight"),
        "scales of integers": _put(".scales", np.ones((64, 1), np.uint8)),
        "another number of groups": _put(".scales", np.ones((64, 7), np.float32)),
        "NaN scales": _put("attn.to_q.scales", np.full((64, 1), math.nan, np.float32), fatal=False),
        "not declared": _config(quantization=None),
        "3 bits": _config(quantization={"bits": 3}),
        "a million bits": _config(quantization={"bits": 10**6}),
        "bits of a text": _config(quantization={"bits": "4"}),
        "groups of 48": _config(quantization={"group_size": 48}),
        "an unknown mode": _config(quantization={"mode": "fp1"}),
        "an unknown path": _config(quantization={"nowhere": False}),
        "declared a list": _config(quantization=[4]),
        "another program's": _config(quantization={"quant_method": "gptq"}),
    },
    "mflux": {
        "no scales": _drop(".scales"),
        "level a text": _stated({"quantization_level": "x", "mflux_version": "1"}, "quantization_level"),
        "level 5": _stated({"quantization_level": "5", "mflux_version": "1"}, "quantization_level"),
        "level huge": _stated({"quantization_level": "9" * 5000, "mflux_version": "1"}, "quantization_level"),
        "level none": _stated({"quantization_level": "None", "mflux_version": "1"}, "quantization_level"),
        "another number of groups": _put(".scales", np.ones((64, 7), np.float32)),
    },
}
_NOT_A_LINEAR = np.ones((4, 4, 4), np.float32)
OF_AN_ADAPTER: Mapping[str, Mapping[str, Mutate]] = {
    "lora comfy": {
        "no up": _drop("lora_up.weight"),
        "no down": _drop("lora_down.weight"),
        "another rank": _put("to_q.lora_up.weight", np.ones((64, 3), np.float32)),
        "rank 0": _put("to_q.lora_down.weight", np.ones((0, 64), np.float32)),
        "not a matrix": _put("lora_down.weight", _NOT_A_LINEAR),
        "NaN alpha": _put(".alpha", NAN),
        "two alphas": _put(".alpha", np.ones(2, np.float32)),
        "another width": _put("to_q.lora_down.weight", np.ones((4, 63), np.float32)),
        "another architecture": _rename("attn.to_q.lora_up.weight", "attn.qkv.lora_up.weight"),
        "DoRA": _rename("lora_down.weight", "dora_scale"),
    },
    "lora peft": {
        "rank 0": _config(r=0),
        "rank of a text": _config(r="4"),
        "another rank": _config(r=8),
        "no rank": _config(r=None),
        "NaN alpha": _config(lora_alpha=math.nan),
        "huge alpha": _config(lora_alpha=10**400),
        "DoRA": _config(use_dora=True),
        "an unknown kind": _config(peft_type="LOHA"),
        "patterns a list": _config(rank_pattern=[1]),
        "an expression": _config(alpha_pattern="(a+)+$"),
    },
    "lora diffusers": {
        "metadata no JSON": _stated({"lora_adapter_metadata": "{"}, "lora_adapter_metadata"),
        "metadata a list": _stated({"lora_adapter_metadata": "[]"}, "lora_adapter_metadata"),
        "metadata rank": _stated({"lora_adapter_metadata": '{"r": 9, "lora_alpha": 1}'}, "lora_adapter_metadata"),
    },
    "lokr": {"no w2": _drop(".lokr_w2"), "three dimensions": _put(".lokr_w1", _NOT_A_LINEAR)},
}


def _parts(change: Callable[[Gguf, Random], tuple[str, ...]], fatal: bool = True) -> Mutate:
    """A change of a GGUF file; it returns the culprits."""

    def mutate(weights: Weights, random: Random) -> Mutant:
        assert isinstance(weights.file, Gguf)
        culprits = change(weights.file, random)
        return Mutant(weights.file.content(), culprits, fatal)

    return mutate


def _value(key: str, kind: int, value: bytes, fatal: bool = True) -> Mutate:
    def change(file: Gguf, random: Random) -> tuple[str, ...]:
        file.metadata = [each for each in file.metadata if each[0] != key.encode()] + [(key.encode(), kind, value)]
        return (key, "tensor")[: 1 if fatal else 2]

    return _parts(change, fatal)


def _placed(at: int, value: Callable[[Any, Gguf], Any], fatal: bool = True) -> Mutate:
    """Another name (0), sizes (1), type (2) or offset (3) of a tensor."""

    def change(file: Gguf, random: Random) -> tuple[str, ...]:
        tensor = random.choice(file.tensors)
        name = tensor[0].decode()
        tensor[at] = value(tensor[at], file)
        new = tensor[0].decode(errors="replace")
        return (*_path(name), _short(new), *_path(new), f"tensor {file.tensors.index(tensor) + 1} of")

    return _parts(change, fatal)


def _counted(name: str, count: int) -> Mutate:
    return _parts(lambda file, random: (file.counts.update({name: count}), ())[1])


def _renamed_twice(file: Gguf, random: Random) -> tuple[str, ...]:
    file.tensors[3][0] = file.tensors[4][0]
    return (file.tensors[4][0].decode(),)


def _one_prefix(file: Gguf, random: Random) -> tuple[str, ...]:
    tensor = random.choice(file.tensors)
    tensor[0] = b"model.diffusion_model." + tensor[0]
    return ("prefix",)


def _without_one(file: Gguf, random: Random) -> tuple[str, ...]:
    tensor = random.choice(file.tensors)
    file.tensors.remove(tensor)
    return (tensor[0].decode(),)


def _nan_scales(file: Gguf, random: Random) -> tuple[str, ...]:
    tensor = next(each for each in file.tensors if each[2] == 8)
    file.data[tensor[3] : tensor[3] + 2] = np.float16(math.nan).tobytes()
    return (tensor[0].decode(),)


_ARRAY, _STRING = 9, 8
_ORIGINAL = "comfy.gguf.orig_shape.transformer_blocks.0.attn.to_q.weight"
GGUF: Mapping[str, Mutate] = {
    "cut": _raw(lambda content, random: content[: random.randrange(4, len(content) - 1)]),
    "cut in the header": _raw(lambda content, random: content[: random.randrange(4, 2000)]),
    "another magic": _raw(lambda content, random: b"GGML" + content[4:]),
    "version 1": _parts(lambda file, random: (setattr(file, "version", 1), ())[1]),
    "version 4": _parts(lambda file, random: (setattr(file, "version", 4), ())[1]),
    "big-endian": _parts(lambda file, random: (setattr(file, "version", 3 << 24), ())[1]),
    "many tensors": _counted("tensors", 1 << 60),
    "more tensors": _counted("tensors", 10_000),
    "many keys": _counted("keys", 1 << 60),
    "more keys": _counted("keys", 3),
    "key twice": _parts(lambda file, random: (file.metadata.append(file.metadata[0]), ("general.architecture",))[1]),
    "long key": _parts(lambda file, random: (file.metadata.append((b"k" * 100_000, 4, bytes(4))), ("entry 3",))[1]),
    "no UTF-8": _value("a.b", _STRING, text(b"\xff\xfe")),
    "huge text": _value("a.b", _STRING, struct.pack("<Q", 1 << 60)),
    "unknown type of value": _value("a.b", 77, bytes(8)),
    "array of arrays": _value("a.b", _ARRAY, struct.pack("<IQ", _ARRAY, 1) + bytes(12)),
    "huge array": _value("a.b", _ARRAY, struct.pack("<IQ", 4, 1 << 61)),
    "array of huge texts": _value(
        "a.b", _ARRAY, struct.pack("<IQ", _STRING, 2) + text("a") + struct.pack("<Q", 1 << 60)
    ),
    "millions of texts": _parts(
        lambda file, random: (
            file.metadata.append((b"a.b", _ARRAY, struct.pack("<IQ", _STRING, 10**7) + bytes(10**7 * 8))),
            ("a.b",),
        )[1]
    ),
    "alignment 0": _value("general.alignment", 4, struct.pack("<I", 0)),
    "alignment 3": _value("general.alignment", 4, struct.pack("<I", 3)),
    "huge alignment": _value("general.alignment", 4, struct.pack("<I", 1 << 31)),
    "alignment a text": _value("general.alignment", _STRING, text("32")),
    "another alignment": _value("general.alignment", 4, struct.pack("<I", 4096), fatal=False),
    "another architecture": _value("general.architecture", _STRING, text("flux")),
    "architecture a number": _value("general.architecture", 4, struct.pack("<I", 3)),
    "long architecture": _value("general.architecture", _STRING, text("x" * 1_000_000)),
    "another version of quantisation": _value("general.quantization_version", 4, struct.pack("<I", 1)),
    "no dimensions": _placed(1, lambda sizes, file: []),
    "five dimensions": _placed(1, lambda sizes, file: [*sizes, 1, 1, 1, 1]),
    "a size of 0": _placed(1, lambda sizes, file: [0, *sizes[1:]]),
    "a huge size": _placed(1, lambda sizes, file: [1 << 60, *sizes[1:]]),
    "an overflowing size": _placed(1, lambda sizes, file: [1 << 32, 1 << 32, 1 << 32]),
    "a negative size": _placed(1, lambda sizes, file: [-32, *sizes[1:]]),
    "another size": _placed(1, lambda sizes, file: [sizes[0] * 2, *sizes[1:]]),
    "sizes exchanged": _placed(1, lambda sizes, file: [32, math.prod(sizes) // 32]),
    "unknown type": _placed(2, lambda kind, file: 99),
    "a removed type": _placed(2, lambda kind, file: 4),
    "a type that is not read": _placed(2, lambda kind, file: 20),
    "integers": _placed(2, lambda kind, file: 26),
    "doubles": _placed(2, lambda kind, file: 28),
    "another type of block": _placed(2, lambda kind, file: 14 if kind != 14 else 10),
    "an unaligned offset": _placed(3, lambda offset, file: offset + 1),
    "beyond the end": _placed(3, lambda offset, file: offset + (len(file.data) // 32 + 1) * 32),
    "a huge offset": _placed(3, lambda offset, file: (1 << 63) + 32),
    "overlapping": _placed(3, lambda offset, file: file.tensors[5][3] if offset != file.tensors[5][3] else 0),
    "name twice": _parts(_renamed_twice),
    "long name": _placed(0, lambda name, file: b"x" * 5000),
    "a name that is not UTF-8": _placed(0, lambda name, file: b"\xff\xfe"),
    "control characters": _placed(0, lambda name, file: b"\x1b[2J\n\0"),
    "empty name": _placed(0, lambda name, file: b""),
    "one prefix": _parts(_one_prefix),
    "a tensor less": _parts(_without_one),
    "original shape of text": _value(_ORIGINAL, _STRING, text("4")),
    "another original shape": _value(_ORIGINAL, _ARRAY, struct.pack("<IQIII", 4, 2, 64, 65, 0)[:-4]),
    "a huge original shape": _value(_ORIGINAL, _ARRAY, struct.pack("<IQQQ", 10, 2, 1 << 63, 1 << 63)),
    "NaN scales": _parts(_nan_scales, fatal=False),
}


_EVERY = ("comfy scale_weight", "float8 folder", "nf4", "mlx", "lora comfy")
"""Layouts of which each has a reader of its own; all others share one of these."""


def kinds(layout: str) -> Mapping[str, Mutate]:
    """The mutations of a layout by name."""
    if layout == "gguf":
        return GGUF
    return {**(SAFETENSORS if layout in _EVERY else {}), **OF_A_LAYOUT.get(layout, {}), **OF_AN_ADAPTER.get(layout, {})}
