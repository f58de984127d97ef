"""Adapter files: what is read, its scale and its shape, and what is refused."""

import json
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab.errors import InputError
from precision_lab.model.adapters.adapter import read_adapter

LINEARS = {
    "transformer_blocks.0.attn.to_q": (12, 8),
    "transformer_blocks.0.attn.to_out.0": (8, 12),
    "transformer_blocks.1.img_mlp.gate_layer": (20, 8),
    "transformer_blocks.1.img_mlp.proj": (20, 8),
    "proj_out": (6, 8),
}
Q = "transformer_blocks.0.attn.to_q"


def low_rank(rng, path, rank=3, shape=None, names=("lora_A", "lora_B")):
    outputs, channels = shape or LINEARS[path]
    down, up = (rng.standard_normal(size, dtype=np.float32) for size in ((rank, channels), (outputs, rank)))
    return {f"{path}.{names[0]}.weight": down, f"{path}.{names[1]}.weight": up}


def saved(tensors, folder, metadata=None, prefix=""):
    file = folder / "lora.safetensors"
    save_file({prefix + name: np.asarray(value) for name, value in tensors.items()}, file, metadata)
    return str(file)


def refused(path, *words, linears=LINEARS):
    with pytest.raises(InputError) as error:
        read_adapter(path).deltas(linears)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_the_delta_is_the_product_of_the_factors_and_is_named_by_path(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {**low_rank(rng, Q), **low_rank(rng, "proj_out", rank=1)}
    deltas = read_adapter(saved(tensors, tmp_path)).deltas(LINEARS)
    assert list(deltas) == [Q, "proj_out"]
    for path, delta in deltas.items():
        expected = tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
        assert delta.shape == LINEARS[path]
        assert delta.matrix().dtype == mx.float32
        np.testing.assert_allclose(np.array(delta.matrix()), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.array(delta.times(-0.5).matrix()), -0.5 * expected, rtol=1e-5, atol=1e-6)


def test_a_file_is_read_whatever_its_name_ends_in(tmp_path):
    tensors = low_rank(np.random.default_rng(1), Q)
    file = Path(saved(tensors, tmp_path))
    whole = np.array(read_adapter(str(file)).deltas(LINEARS)[Q].matrix())
    for name in ("lora", "lora.v2", "lora.sft"):
        other = file.rename(tmp_path / name)
        np.testing.assert_array_equal(np.array(read_adapter(str(other)).deltas(LINEARS)[Q].matrix()), whole)
        file = other


@pytest.mark.parametrize("alpha", [np.float32(6), np.array([6.0], np.float16), np.int64(6)])
def test_alpha_is_divided_by_the_rank(alpha, tmp_path):
    tensors = low_rank(np.random.default_rng(1), Q) | {f"{Q}.alpha": alpha}
    assert read_adapter(saved(tensors, tmp_path)).deltas(LINEARS)[Q].scale == 2


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 3, "lora_alpha": 6}, 2),
        ({"r": 3, "lora_alpha": 6, "use_rslora": True}, 6 / 3**0.5),
        ({"r": 8, "lora_alpha": 6, "rank_pattern": {"to_q": 3}}, 2),
        ({"r": 8, "lora_alpha": 6, "rank_pattern": {"attn.to_q": 3}, "alpha_pattern": {"^" + Q: 9}}, 3),
        ({"r": 3, "lora_alpha": 6, "alpha_pattern": {"o_q": 9, "^to_q": 9}}, 2),
        ({"r": 3, "lora_alpha": 6, "alpha_pattern": {r"^transformer_blocks\.0\.attn\.to_q$": 9}}, 3),
    ],
)
def test_the_configuration_of_peft_decides_the_scale(config, scale, tmp_path):
    tensors = low_rank(np.random.default_rng(2), Q)
    in_metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    assert read_adapter(saved(tensors, tmp_path, in_metadata, "transformer.")).deltas(LINEARS)[Q].scale == scale
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    saved(tensors, tmp_path, prefix="base_model.model.")
    assert read_adapter(str(tmp_path)).deltas(LINEARS)[Q].scale == scale


@pytest.mark.parametrize("form", ["whole", "w1", "w2", "both"])
def test_lokr_is_a_kronecker_product(form, tmp_path):
    rng = np.random.default_rng(3)
    rank, factors, tensors = 2, {}, {}
    for name, (outputs, channels) in (("w1", (3, 2)), ("w2", (4, 4))):
        a, b = rng.standard_normal((outputs, rank)), rng.standard_normal((rank, channels))
        factors[name] = a @ b
        if form in (name, "both"):
            tensors |= {f"{Q}.lokr_{name}_a": a, f"{Q}.lokr_{name}_b": b}
        else:
            tensors[f"{Q}.lokr_{name}"] = a @ b
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()} | {f"{Q}.alpha": np.float32(5)}
    delta = read_adapter(saved(tensors, tmp_path, prefix="diffusion_model.")).deltas(LINEARS)[Q]
    expected = np.kron(factors["w1"], factors["w2"]) * (1 if form == "whole" else 5 / rank)
    np.testing.assert_allclose(np.array(delta.matrix()), expected, rtol=1e-5, atol=1e-5)
    x = rng.standard_normal((2, 5, 8)).astype(np.float32)
    np.testing.assert_allclose(np.array(delta.product(mx.array(x))), x @ expected.T, rtol=1e-4, atol=1e-4)


def test_a_joined_linear_of_comfyui_is_split(tmp_path):
    tensors = low_rank(np.random.default_rng(4), "transformer_blocks.1.img_mlp.gate_up", shape=(40, 8))
    deltas = read_adapter(saved(tensors, tmp_path, prefix="diffusion_model.")).deltas(LINEARS)
    whole = tensors["transformer_blocks.1.img_mlp.gate_up.lora_B.weight"] @ next(iter(tensors.values()))
    halves = {"transformer_blocks.1.img_mlp.gate_layer": whole[:20], "transformer_blocks.1.img_mlp.proj": whole[20:]}
    assert deltas.keys() == halves.keys()
    for path, expected in halves.items():
        np.testing.assert_allclose(np.array(deltas[path].matrix()), expected, rtol=1e-5, atol=1e-6)


def test_one_line_names_what_does_not_fit(tmp_path):
    rng = np.random.default_rng(5)
    good = {**low_rank(rng, Q), **low_rank(rng, "proj_out")}
    x = np.zeros((2, 8), np.float32)
    file = str(tmp_path / "lora.safetensors")
    cases = {
        "dora": ({f"{Q}.dora_scale": x}, (f"{Q}.dora_scale", "DoRA", "1 of 5")),
        "dora of peft": ({f"{Q}.lora_magnitude_vector.weight": x}, ("lora_magnitude_vector", "DoRA")),
        "loha": ({f"{Q}.hada_w1_a": x}, ("hada_w1_a", "LoHa")),
        "unknown": ({f"{Q}.lora_C.weight": x}, (f"{Q}.lora_C.weight", "1 of 5")),
        "bias": ({f"{Q}.lora_B.bias": x}, ("lora_B.bias",)),
        "half": ({"transformer_blocks.0.attn.to_out.0.lora_A.weight": x}, ("up of", "lora_A", "1 of 3")),
        "alpha alone": ({"transformer_blocks.0.attn.to_out.0.alpha": x}, ("alpha", "1 of 3")),
        "lokr half": ({"transformer_blocks.0.attn.to_out.0.lokr_w1": x}, ("lokr_w2", "1 of 3")),
        "lokr both": ({f"{Q}.lokr_w1": x, f"{Q}.lokr_w2": x}, ("one kind of adapter",)),
        "prefixes": ({"diffusion_model.proj_out.alpha": x}, ("mixture of prefixes", "diffusion_model.proj_out.alpha")),
        "architecture": (
            low_rank(rng, "double_blocks.0.img_attn.qkv", shape=(12, 8)),
            ("double_blocks.0.img_attn.qkv.lora_A.weight", "2 of 3"),
        ),
        "shape": (low_rank(rng, "transformer_blocks.0.attn.to_out.0", shape=(8, 13)), ("8 x 13", "8 x 12", "2 of 3")),
        "rank": ({"proj_out.lora_A.weight": np.zeros((4, 8), np.float32)}, ("rank 4", "rank 3")),
        "no rank": (low_rank(rng, "transformer_blocks.0.attn.to_out.0", rank=0), ("(0, 12)",)),
        "alphas": ({f"{Q}.alpha": np.zeros(2, np.float32)}, ("expected one number",)),
        "nan": ({f"{Q}.alpha": np.float32("nan")}, (f"{Q}.alpha", "nan")),
        "twice": ({f"{Q.replace('.', '_')}.lora_down.weight": np.zeros((3, 8), np.float32)}, ("same part",)),
        "convolution": ({f"{Q}.lora_A.weight": np.zeros((3, 8, 1, 1), np.float32)}, ("(3, 8, 1, 1)", "matrix")),
    }
    for tensors, words in cases.values():
        saved(good | tensors, tmp_path)
        refused(file, file, *words)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"r": 3}, "lora_alpha"),
        ({"r": True, "lora_alpha": 3}, "r is True"),
        ({"r": 0, "lora_alpha": 3}, "r is 0"),
        ({"r": 3, "lora_alpha": float("nan")}, "nan"),
        ({"r": 4, "lora_alpha": 3}, "rank 4"),
        ({"r": 3, "lora_alpha": 3, "use_dora": True}, "use_dora"),
        ({"r": 3, "lora_alpha": 3, "peft_type": "LOHA"}, "LOHA"),
        ({"r": 3, "lora_alpha": 3, "peft_type": ["LORA"]}, "peft_type"),
        ({"r": 10**40, "lora_alpha": 3}, "r is 1000"),
        ({"r": 3, "lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"r": 3, "lora_alpha": 3, "rank_pattern": []}, "rank_pattern"),
        ({"r": 3, "lora_alpha": 3, "init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"r": 3, "lora_alpha": 3, "rank_pattern": {"(a+)+$": 3}}, "(a+)+$"),
        ({"r": 3, "lora_alpha": 3, "rank_pattern": [3]}, "rank_pattern"),
        ({"r": 3, "lora_alpha": 3, "alpha_pattern": {"to_q": "9"}}, "alpha_pattern"),
        ({"r": 3, "lora_alpha": 3, "use_rslora": "no"}, "use_rslora"),
    ],
)
def test_a_configuration_that_is_not_read_is_named(config, word, tmp_path):
    saved(low_rank(np.random.default_rng(6), Q), tmp_path, prefix="base_model.model.")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    refused(str(tmp_path), "adapter_config.json", word)


def test_an_alpha_that_contradicts_the_configuration_is_refused(tmp_path):
    tensors = low_rank(np.random.default_rng(7), Q) | {f"{Q}.alpha": np.float32(4)}
    metadata = {"lora_adapter_metadata": json.dumps({"r": 3, "lora_alpha": 3})}
    refused(saved(tensors, tmp_path, metadata, "transformer."), f"{Q}.alpha", "4", "3")


def test_a_path_without_an_adapter_is_refused(tmp_path):
    refused(str(tmp_path / "none"), "none", "no such file")
    refused("lightx2v/Qwen-Image-Lightning", "not fetched from the Hub")
    refused(str(tmp_path), "no safetensors file")
    saved(low_rank(np.random.default_rng(8), Q), tmp_path, prefix="base_model.model.")
    refused(str(tmp_path), "adapter_config.json")
    save_file({"a": np.zeros(1)}, tmp_path / "other.safetensors")
    refused(str(tmp_path), "2 safetensors files")
    (tmp_path / "lora.bin").write_bytes(b"\x80\x04\x95")
    refused(str(tmp_path / "lora.bin"), "pickle")
    saved({}, tmp_path)
    refused(str(tmp_path / "lora.safetensors"), "no tensors")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"F32"', '"F' + "9" * 5000 + '"'),
        ('"shape":[3,8]', '"shape":[' + "9" * 4000 + ",8]"),
        ('"shape":[3,8]', '"shape":[' + "9" * 2500 + "," + "9" * 2500 + "]"),
        ('"shape":[3,8]', '"shape":[3,8' + ",1" * 20 + "]"),
        (f"{Q}.lora_A", "x" * 100_000 + ".lora_A"),
        (f"{Q}.lora_A", "x" * 100_000),
    ],
)
def test_a_message_stays_short_whatever_the_header_holds(old, new, tmp_path):
    file = tmp_path / "lora.safetensors"
    saved(low_rank(np.random.default_rng(10), Q), tmp_path)
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].replace(old.encode(), new.encode())
    assert header != content[8 : 8 + length]
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    with pytest.raises(InputError) as error:
        read_adapter(str(file)).deltas(LINEARS)
    assert len(str(error.value)) < 700 + len(str(file))


def test_a_mutated_file_is_read_or_refused_in_one_line(tmp_path):
    rng = np.random.default_rng(9)
    config = {"r": 3, "lora_alpha": 6, "rank_pattern": {"to_q": 3}}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    original = tmp_path / "lora.safetensors"
    saved(low_rank(rng, Q) | low_rank(rng, "proj_out"), tmp_path, metadata, "transformer.")
    content = original.read_bytes()
    header = struct.unpack("<Q", content[:8])[0] + 8
    outcomes = []
    for _ in range(200):
        mutated = bytearray(content)
        kind = rng.integers(3)
        if kind == 0:
            mutated = mutated[: rng.integers(len(mutated))]
        for _ in range(rng.integers(1, 4) if kind else 0):
            mutated[rng.integers(8 if kind == 2 else header)] = rng.integers(256)
        original.write_bytes(mutated)
        try:
            deltas = read_adapter(str(original)).deltas(LINEARS)
            mx.eval([delta.matrix() for delta in deltas.values()])
        except InputError as error:
            outcomes.append(str(error))
    assert len(outcomes) > 100
    assert not [message for message in outcomes if "\n" in message]
