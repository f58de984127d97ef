"""`compare dump=`: right ports are called right, and a planted wrong operation is named."""

from __future__ import annotations

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.cli import main
from precision_lab.cli.paths import checkpoints_dir
from precision_lab.device import memory
from precision_lab.errors import InputError
from precision_lab.lab.foreign import compare
from precision_lab.lab.one_pass import Pass, read_inputs, write_inputs
from precision_lab.lab.subject import Case
from precision_lab.record.dump import Dump
from precision_lab.synthetic.source import QwenImage, QwenImage21
from tests.lab import foreign_ports as ports

SETTINGS = {"steps": 2, "height": 48, "width": 32, "guidance_scale": 1.0, "negative_prompt": " "}
B = "transformer_blocks"
WRONG = {
    f"{B}.1.attn.rotary_q": ports.halves_rotated,
    f"{B}.2.attn.rotary_added_k": ports.rotated_back,
    f"{B}.0.attn.attend": ports.attention_unscaled,
    f"{B}.3.attn.attend": ports.attention_by_width,
    f"{B}.1.attn.attend": ports.image_first,
    f"{B}.2.img_modulate1": ports.swapped_modulation,
    f"{B}.0.txt_modulate2": ports.modulation_without_one,
    "norm_out.modulate": ports.swapped_modulation,
    f"{B}.1.img_mlp.net.0.gelu": ports.exact_gelu,
    f"{B}.2.attn.norm_q": ports.norm_without_weight,
    f"{B}.0.attn.to_k": ports.without_bias,
    "time_text_embed.time_proj": ports.coarse_frequencies,
    f"{B}.3.img_add2": ports.ungated,
    f"{B}.2.txt_mod.0": ports.relu,
    "txt_norm": ports.unchanged,
    "proj_out": ports.scaled,
}


@pytest.fixture(scope="module")
def one(small_checkpoint) -> Pass:
    return Pass(QwenImage("small", str(small_checkpoint)), Case(0, "two red circles", 3, SETTINGS))


@pytest.fixture(scope="module")
def one_21(small_checkpoint_21) -> Pass:
    settings = SETTINGS | {"height": 96, "width": 64, "prefix_cache": "none"}
    return Pass(QwenImage21("small", str(small_checkpoint_21)), Case(0, "two red circles", 3, settings))


def judged(one, file):
    found = compare(one, Dump.open(file))
    first = found.first_wrong
    return found, None if first is None else found.rows[first].operations


@pytest.mark.parametrize(
    ("site", "dtype"),
    [(f"{B}.1.img_mlp.net.0.gelu", mx.bfloat16), (f"{B}.1.attn.rotary_q", mx.float32)],
    ids=str,
)
def test_a_wrong_operation_is_named(one, tmp_path, site, dtype):
    found, operations = judged(one, ports.dump_of_lab(one, dtype, tmp_path / "d.safetensors", {site: WRONG[site]}))
    assert operations == (site,)
    assert sum(row.wrong for row in found.rows) == 1  # those after it are right on the inputs that they had


def test_a_right_port_is_right_with_other_sums(one, tmp_path):
    linears = {f"{B}.*.attn.to_{{q,k,v}}": ports.other_order_of_sums}
    for dtype, name in ((mx.float32, "float32"), (mx.bfloat16, "bfloat16")):
        file = ports.dump_of_lab(one, dtype, tmp_path / "d.safetensors", linears, stored=mx.float32)
        found, operations = judged(one, file)
        assert (found.format, operations, found.unknown) == (name, None, {})
        assert found.covered == found.operations
        assert all(row.local for row in found.rows)


def test_what_lies_between_is_named_where_the_dump_has_gaps(one, tmp_path):
    kept = {f"{B}.1.attn.norm_q.out", f"{B}.1.attn.to_out.0.in", f"{B}.1.attn.norm_k.out", f"{B}.1.attn.to_v.out"}
    planted = {f"{B}.1.attn.attend": ports.attention_unscaled}
    file = ports.dump_of_lab(one, mx.float32, tmp_path / "d.safetensors", planted, kept.__contains__)
    found, operations = judged(one, file)
    assert [row.address for row in found.rows if row.wrong] == [f"{B}.1.attn.to_out.0 (in)"]
    assert {f"{B}.1.attn.{name}" for name in ("rotary_q", "rotary_k", "attend")} < set(operations)
    assert f"{B}.1.attn.to_q" not in operations
    assert not found.rows[found.first_wrong].local


def test_inputs_are_read_again(one, tmp_path):
    file = tmp_path / "inputs.safetensors"
    write_inputs(one, file)
    again = read_inputs(one.source, file)
    assert again.case == one.case
    for name, array in one.inputs().items():
        np.testing.assert_array_equal(again.values[name], np.array(array))
    assert set(again.values) == {"latents", "timestep", "text"}


def test_a_case_larger_than_the_machine_is_refused(one, monkeypatch):
    monkeypatch.setattr(memory, "physical", lambda: 1000)
    with pytest.raises(InputError, match=r"needs at least 0\.0 GB, but this machine has 0\.0 GB"):
        one.inputs()


def save(file, **arrays):
    mx.save_safetensors(str(file), {name.replace("__", "."): array for name, array in arrays.items()})
    return file


def test_files_that_cannot_be_compared(one, tmp_path):
    file = tmp_path / "d.safetensors"
    for arrays, message in (
        ({"img_in": mx.zeros((6, 64))}, r"has the shape \(6, 64\), expected \(1, 6, 64\)"),
        ({"img_im": mx.zeros((1, 6, 64))}, "no array of this pass.*Did you mean img_in"),
        ({"img_in": mx.zeros((1, 6, 64)), "img_in__out": mx.zeros((1, 6, 64))}, "are the same array"),
        ({"img_in": mx.zeros((1, 6, 64), mx.int32)}, "is I32, expected F32, F16, BF16"),
        ({"img_in": mx.zeros((1, 6, 64)), "latents": mx.zeros((1, 5, 64))}, "input latents has the shape"),
    ):
        with pytest.raises(InputError, match=message):
            compare(one, Dump.open(save(file, **arrays)))
    mx.save_safetensors(str(file), {"img_in": mx.zeros((1, 6, 64))})
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(InputError, match="truncated"):
        Dump.open(file)
    file.write_bytes(whole.replace(b"[1,6,64]", b"[1,7,64]"))
    with pytest.raises(InputError, match="has 1536 bytes, expected 1792"):
        Dump.open(file)
    for content, message in ((b"junk", "not a safetensors file"), (b"", "not a safetensors file")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            Dump.open(file)
    with pytest.raises(InputError, match="no inputs of a pass"):
        read_inputs(one.source, save(file, latents=mx.zeros(1)))
    with pytest.raises(InputError, match="step is 2, expected 0 to 1"):
        replace(one, step=2).inputs()


def test_values_that_are_not_finite_are_wrong_where_they_arise(one, tmp_path):
    overflowing = {f"{B}.1.img_mlp.net.2": lambda module, x: module(x) / 0}
    file = ports.dump_of_lab(one, mx.float32, tmp_path / "d.safetensors", overflowing)
    found, operations = judged(one, file)
    assert operations == (f"{B}.1.img_mlp.net.2",)
    assert found.rows[found.first_wrong].error == np.inf


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("site", WRONG)
def test_every_wrong_operation_is_named(one, tmp_path, site, dtype):
    file = ports.dump_of_lab(one, dtype, tmp_path / "d.safetensors", {site: WRONG[site]})
    assert judged(one, file)[1] == (site,)


@pytest.mark.slow
def test_another_eps_is_seen_in_fp32(one, tmp_path):
    site = f"{B}.0.img_norm1"
    file = ports.dump_of_lab(one, mx.float32, tmp_path / "d.safetensors", {site: ports.norm_with_eps(1e-3)})
    assert judged(one, file)[1] == (site,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("site", "wrong"),
    [
        (f"{B}.1.attn.rotary_k", ports.halves_rotated),
        (f"{B}.2.attn.attend", ports.attention_unscaled),
        (f"{B}.0.img_gate1", ports.unchanged),
        (f"{B}.3.img_mlp.activation_fn", ports.exact_gelu),
        ("txt_in.act", ports.exact_gelu),
        ("time_text_embed.time_proj", ports.sines_first),
    ],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_wrong_operations_of_2_1_are_named(one_21, tmp_path, site, wrong, dtype):
    file = ports.dump_of_lab(one_21, dtype, tmp_path / "d.safetensors", {site: wrong})
    assert judged(one_21, file)[1] == (site,)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_right_ports_of_2_1(one_21, tmp_path, dtype):
    assert judged(one_21, ports.dump_of_lab(one_21, dtype, tmp_path / "d.safetensors"))[1] is None


def swap_chunks(model):
    original = model.transformer_blocks[1]._modulate

    def wrong(x, mod_params, *rest):
        shift, scale, gate = mod_params.chunk(3, dim=-1)
        return original(x, torch_cat([scale, shift, gate]), *rest)

    model.transformer_blocks[1]._modulate = wrong


def torch_cat(parts):
    import torch

    return torch.cat(parts, dim=-1)


def exact_gelu(model):
    model.transformer_blocks[2].img_mlp.net[0].approximate = "none"


def no_bias(model):
    model.transformer_blocks[0].attn.to_q.bias.data.zero_()


def no_weight(model):
    model.transformer_blocks[3].attn.norm_added_q.weight.data.fill_(1)


def other_rope(model):
    original = model.pos_embed.forward
    model.pos_embed.forward = lambda *args, **kwargs: tuple(x.conj() for x in original(*args, **kwargs))


def unscaled_timestep(model):
    model.time_text_embed.time_proj.scale = 1


def no_last_bias(model):
    model.proj_out.bias.data.zero_()


PLANTED = {
    "img_modulate1": (f"{B}.1.img_modulate1", swap_chunks),
    "gelu": (f"{B}.2.img_mlp.net.0.gelu", exact_gelu),
    "bias": (f"{B}.0.attn.to_q", no_bias),
    "weight": (f"{B}.3.attn.norm_added_q", no_weight),
    "rope": (f"{B}.0.attn.rotary_q", other_rope),
    "timestep": ("time_text_embed.time_proj", unscaled_timestep),
    "last bias": ("proj_out", no_last_bias),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_example_of_the_guide(one, small_checkpoint, tmp_path, dtype):
    inputs, file = tmp_path / "inputs.safetensors", tmp_path / "d.safetensors"
    write_inputs(one, inputs)
    ports.dump_of_diffusers(small_checkpoint, inputs, dtype, file)
    found, operations = judged(read_inputs(one.source, inputs), file)
    assert (found.format, operations) == (dtype, None)
    assert all("to_out.1" in name for name in found.unknown)  # a dropout
    for site, plant in PLANTED.values():
        ports.dump_of_diffusers(small_checkpoint, inputs, dtype, file, plant)
        found, operations = judged(read_inputs(one.source, inputs), file)
        assert operations is not None, site
        assert site in operations
        assert len(operations) == 1 or "rotary" in site


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_diffusers_with_the_embedded_checkpoint(tmp_path, dtype):
    folder, inputs, file = checkpoints_dir() / "micro", tmp_path / "inputs.safetensors", tmp_path / "d.safetensors"
    one = Pass(QwenImage("micro", str(folder)), Case(0, "a blue star on a yellow background", 1, SETTINGS), step=1)
    write_inputs(one, inputs)
    ports.dump_of_diffusers(folder, inputs, dtype, file)
    out = tmp_path / "out"
    assert main(["compare", f"dump={file}", f"inputs={inputs}", f"out={out}"]) == 0
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (summary["right"], summary["format"], summary["first_wrong"]) == (True, dtype, None)
    assert summary["arrays"] == len(summary["rows"]) > 3000
    assert (out / "compare.html").is_file()
