"""Adapters in runs: with paged weights, in an experiment, from the command line."""

import json
from dataclasses import asdict, replace

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab.cli import main
from precision_lab.instrument.sites import walk
from precision_lab.lab.groups import linears
from precision_lab.lab.subject import Case
from precision_lab.model.coded import linear_shape
from precision_lab.model.codings.int8 import Int8
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image_21.checkpoint import Checkpoint as Checkpoint21
from precision_lab.model.text_to_image.subject import TextToImage
from precision_lab.techniques.base import applied
from precision_lab.techniques.coded_weights import CodedWeights
from precision_lab.techniques.lora import LoRA
from precision_lab.techniques.lora_fused import FusedLoRA
from tests.malformed.harness import dry
from tests.subjects import picture
from tests.undrawn import undrawn

__all__ = ["dry"]

SMALL = {"steps": 1, "height": 32, "width": 32}


def adapter(pipeline, file):
    """An adapter of rank 2 for every linear of the blocks, as kohya names it."""
    rng = np.random.default_rng(0)
    tensors = {}
    for site in linears(walk(pipeline.components)):
        if site.block is not None:
            name, (outputs, channels) = f"lora_unet_{site.path.replace('.', '_')}", linear_shape(site.module)
            tensors[f"{name}.lora_down.weight"] = rng.standard_normal((2, channels), dtype=np.float32)
            tensors[f"{name}.lora_up.weight"] = rng.standard_normal((outputs, 2), dtype=np.float32) / channels
    save_file(tensors, file)
    return str(file)


@pytest.mark.parametrize("name", ["small_checkpoint", "small_checkpoint_21"])
def test_paged_weights_give_the_same_bits(name, request, tmp_path):
    kind = Checkpoint21 if name.endswith("21") else Checkpoint
    folder = request.getfixturevalue(name)
    resident, paged = (kind(folder, stream=stream).pipeline(mx.bfloat16) for stream in (False, True))
    path = adapter(resident, tmp_path / "lora.safetensors")
    count = sum(site.block is not None for site in linears(walk(resident.components)))
    drawn = Case(0, "two red circles", 3, asdict(replace(resident.settings(), **SMALL)))
    coded = CodedWeights(Int8(), ["transformer_blocks.*.attn.to_q"])
    plain = picture(TextToImage(resident), drawn)
    for techniques in (
        {"lora": LoRA(path, 2)},
        {"fused": FusedLoRA(path, 2)},
        {"int8": coded, "fused": FusedLoRA(path, 2)},
    ):
        results = []
        for pipeline in (resident, paged):
            with applied(pipeline.components, techniques) as coverage:
                results.append(picture(TextToImage(pipeline), drawn))
            assert coverage[list(techniques)[-1]].matched == count
        np.testing.assert_array_equal(*results)
        assert np.any(results[0] != plain)


def test_an_experiment_names_one_adapter_twice(small_checkpoint, tmp_path, monkeypatch):
    path = adapter(Checkpoint(small_checkpoint).pipeline(mx.float32), tmp_path / "lora.safetensors")
    (tmp_path / "conf" / "exp").mkdir(parents=True)
    (tmp_path / "conf" / "exp" / "adapters.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n"
        "  - /technique@reference.technique: [lora]\n"
        "  - /technique@variants.live.technique: [int8, lora]\n"
        "  - /technique@variants.fused.technique: [int8, lora_fused]\n"
        "  - _self_\n"
        "experiment: adapters\n"
        "dtype: float32\n"
        "sampler: {steps: 1}\n"
        "image: {height: 32, width: 32}\n"
        "latency: {min_rounds: 0, max_rounds: 0}\n"
        "variants:\n"
        "  live: {technique: {lora: {path: lora.safetensors}}}\n"
        "  fused: {technique: {lora_fused: {path: lora.safetensors, rounding: stochastic, seed: 3}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["+exp=adapters", "--config-dir", "conf", f"model.path={small_checkpoint}", "out=run", "probe=[]"]
    with undrawn():
        assert main([*arguments, f"reference.technique.lora.path={path}", "prompts=['a red circle']"]) == 0
    variants = json.loads((tmp_path / "run" / "summary.json").read_text())["variants"]
    drift = {name: variants[name]["latent_rel_l2"] for name in ("baseline", "live", "fused")}
    assert 0 < drift["live"] < drift["fused"] < drift["baseline"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["technique=[lora]"], "lora.path is None, expected a safetensors file"),
        (["technique=[lora]", "technique.lora.path=none.safetensors"], "none.safetensors"),
        (["technique=[lora]", "technique.lora.path=other.safetensors"], "other.safetensors: tensor double_blocks"),
        (["technique=[lora_fused]", "technique.lora_fused.path=cut.safetensors"], "cut.safetensors: truncated"),
        (["technique=[lora_fused]", "++technique.lora_fused.rounding=up"], "rounding is 'up'"),
        (["technique=[lora]", "technique.lora.strength=[1,2]", "technique.lora.path=a"], "2 numbers for 1 adapters"),
        (["technique=[lora]", "technique.lora.strength=much", "technique.lora.path=a"], "technique.lora.strength is"),
        (["technique=[lora]", "technique.lora.path={a: b}"], "technique.lora.path is"),
    ],
)
def test_the_command_line_refuses_in_one_line_and_leaves_nothing(
    settings, message, dry, small_checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    name = "double_blocks.0.img_attn.qkv"
    factors = {
        f"{name}.lora_A.weight": np.ones((2, 4), np.float32),
        f"{name}.lora_B.weight": np.ones((4, 2), np.float32),
    }
    save_file(factors, "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-4])
    before = sorted(tmp_path.rglob("*"))
    assert main([*settings, f"model.path={small_checkpoint}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
