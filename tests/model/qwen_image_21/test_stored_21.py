"""Streamed and quantised checkpoints of Qwen-Image-2.1 give the bits of resident weights and of the technique."""

import json
import shutil
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.lab.observing import observing
from precision_lab.lab.quantized_checkpoint import write
from precision_lab.lab.recorder import recorder_of
from precision_lab.lab.subject import Case
from precision_lab.model.quantized import QuantizedLinear
from precision_lab.model.qwen_image_21.checkpoint import Checkpoint
from precision_lab.model.qwen_image_21.rope import rotations
from precision_lab.model.qwen_image_21.settings import Settings
from precision_lab.model.rotary import Grid
from precision_lab.model.text_to_image.subject import TextToImage
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.synthetic import PRESETS, make
from precision_lab.synthetic.source import QwenImage21
from precision_lab.techniques.base import applied
from precision_lab.techniques.parts.weight_storage import model_storage, weight_storage
from precision_lab.techniques.quantized_weights import QuantizedWeights
from tests.model.paged import block_nbytes, measure_blocks, widen
from tests.spread import thinned
from tests.subjects import picture
from tests.undrawn import undrawn

DTYPES = [mx.float32, mx.bfloat16, mx.float16]
MLPS = "transformer_blocks.*.img_mlp.{proj,gate_layer,out}"
TEXT = "text_encoder:layers.*.{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}"
MIXED = QuantizedWeights(
    [
        {"sites": "transformer_blocks.0.attn.to_q", "keep": True},
        {"sites": "modulation.1", "bits": 8},
        {"sites": "transformer_blocks.1.img_mlp.out", "bits": 3, "group_size": 32},
        {"sites": "transformer_blocks.2.img_mlp.out", "mode": "mxfp4"},
        {"sites": MLPS, "bits": 4},
        {"sites": "transformer_blocks.*.attn.{to_q,to_k,to_v,to_out.0}", "bits": 4},
        {"sites": "{img_in,proj_out,norm_out.linear,txt_in.in_layer}", "mode": "mxfp8"},
        {"sites": TEXT, "bits": 6},
    ]
)


def case(**changed) -> Case:
    settings = {"steps": 2, "height": 64, "width": 32} | changed
    return Case(0, "two red circles", 3, asdict(Settings(**settings)))


def both(folder, dtype, **settings):
    """The resident and the streamed pipeline."""
    return [Checkpoint(folder, stream=stream, **settings).pipeline(dtype) for stream in (False, True)]


def generated(pipeline, **changed) -> np.ndarray:
    return picture(TextToImage(pipeline), case(**changed))


# --- streamed


@pytest.mark.parametrize(("dtype", "weights_dtype"), thinned(product(DTYPES, [None, mx.float16]), keep=2), ids=str)
def test_a_streamed_generation_has_the_same_bits_every_time(small_checkpoint_21, dtype, weights_dtype):
    resident, streamed = both(small_checkpoint_21, dtype, weights_dtype=weights_dtype)
    expected = generated(resident)
    for _ in range(2):
        np.testing.assert_array_equal(generated(streamed), expected)


@pytest.mark.parametrize(
    ("prefix_cache", "guidance_scale"), thinned(product(["none", "float32", "float16"], [1.0, 3.0]), keep=2)
)
def test_however_the_prefix_is_kept(small_checkpoint_21, prefix_cache, guidance_scale):
    pictures = [
        generated(pipeline, prefix_cache=prefix_cache, guidance_scale=guidance_scale, padding=3)
        for pipeline in both(small_checkpoint_21, mx.bfloat16)
    ]
    np.testing.assert_array_equal(*pictures)


def test_probes_see_the_same_at_the_same_sites(small_checkpoint_21):
    rows = []
    for pipeline in both(small_checkpoint_21, mx.bfloat16):
        recorder = recorder_of(RangeCatalogue(["**", "text_encoder:**", "vae:**", "pipeline:**"], ["in", "out"]))
        with observing(pipeline.components, [recorder]):
            generated(pipeline)
        rows.append(recorder.rows)
    assert len(rows[0]) > 500
    assert str(rows[0]) == str(rows[1])  # NaN equals itself as text


def test_modules_keep_their_addresses_and_weight_storage(small_checkpoint_21):
    resident, streamed = (pipeline.components for pipeline in both(small_checkpoint_21, mx.float32))
    assert [str(site) for site in walk(resident)] == [str(site) for site in walk(streamed)]
    assert weight_storage(resident) == weight_storage(streamed)
    assert model_storage(resident) == model_storage(streamed)


def test_memory_does_not_grow_with_depth(tmp_path, monkeypatch):
    """In a call, a block and the next are in memory, and fp32 copies of weights if they are narrower; then the next."""
    micro, peaks, block = PRESETS["micro_21"], {}, 0
    rng = np.random.default_rng(0)
    latents, text = (mx.array(rng.standard_normal((1, n, 64), dtype=np.float32)) for n in (4, 3))
    for layers in (4, 12):
        config = replace(micro.transformer, num_layers=layers, num_attention_heads=8)
        make(replace(micro, transformer=config), tmp_path / str(layers))
        for wide in (False, True):
            if wide:
                widen(tmp_path / str(layers) / "transformer")
            block = block_nbytes(tmp_path / str(layers) / "transformer")
            model = Checkpoint(tmp_path / str(layers), stream=True).transformer(mx.float32)
            mx.eval(model.parameters(), latents, text)
            for prefill in (True, False):

                def forward(model=model, prefill=prefill):
                    prefix = model.prefill(text) if prefill else None
                    mx.eval(model(latents, mx.array([0.5]), text, Grid(2, 2), prefix=prefix))

                peak, after = measure_blocks(monkeypatch, layers, forward)
                assert len(after) == 1 + prefill
                assert np.all(np.abs(after[:, :-1] - block) < 0.1 * block), "more than the next block is in memory"
                assert np.all(np.abs(after[:, -1]) < 0.1 * block), "a block is still in memory"
                assert peak < (2.15 if wide else 2.15 + 2) * block
                peaks[layers, prefill] = peak
    assert block > 1e6
    assert all(abs(peaks[12, prefill] - peaks[4, prefill]) < 0.05 * block for prefill in (True, False))


def test_tables_of_other_tests_do_not_count_as_memory_of_a_pass(small_checkpoint_21, monkeypatch):
    model = Checkpoint(small_checkpoint_21, stream=True).transformer(mx.float32)
    text = mx.zeros((1, 3, 64))
    mx.eval(model.parameters(), text)
    measured = []
    for num_large in (0, rotations.cache_info().maxsize):
        for index in range(num_large):
            mx.eval(rotations((8, 12, 12), 1024 + index, None))
        measured.append(measure_blocks(monkeypatch, 4, lambda: model.prefill(text))[1])
    block = block_nbytes(small_checkpoint_21 / "transformer")
    assert np.all(np.abs(measured[1] - measured[0]) < 0.5 * block)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("transformer", "transformer_blocks.2.attn.norm_q.weight"),
        ("text_encoder", "model.language_model.layers.1.self_attn.k_norm.weight"),
    ],
)
def test_streamed_checkpoints_are_rejected_with_the_same_message(small_checkpoint_21, tmp_path, part, name):
    folder = shutil.copytree(small_checkpoint_21, tmp_path / "broken")
    file = next((folder / part).glob("*.safetensors"))
    tensors = dict(mx.load(str(file)))
    changes = ({}, {f"{name}_g": tensors[name]}, {name: tensors[name][:-1]}, {name: tensors[name].astype(mx.int32)})
    for change in changes:
        kept = tensors | change if change else {n: t for n, t in tensors.items() if n != name}
        mx.save_safetensors(str(file), kept, {"format": "pt"})
        messages = []
        for stream in (False, True):
            with pytest.raises(InputError) as caught:
                getattr(Checkpoint(folder, stream=stream), part)(mx.float32)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@pytest.mark.slow  # test_paging.py has such a run of 1.x
def test_a_run_has_the_same_tables(small_checkpoint_21, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = (
        *("sampler.steps=2", "image.height=64", "image.width=32", "prompts=[a red circle]", "seeds=[0]"),
        *("latency.min_rounds=0", "latency.max_rounds=0", "technique=[affine4]", "pinned.cases=null"),
    )
    runs = {stream: tmp_path / stream for stream in ("false", "true")}
    for stream, out in runs.items():
        source = ("model=qwen_image_21", f"model.path={small_checkpoint_21}", f"model.stream={stream}")
        with undrawn():
            assert main([*source, f"out={out}", *quick]) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert summary["weights"] == "synthetic"
        assert all(variant["num_nonfinite"] == 0 for variant in summary["variants"].values())
    for name in (
        "activations.parquet",
        "drift.parquet",
        *(f"images/{p.name}" for p in (runs["true"] / "images").iterdir()),
    ):
        assert (runs["true"] / name).read_bytes() == (runs["false"] / name).read_bytes()


# --- quantised


@pytest.fixture(scope="module")
def saved(small_checkpoint_21, tmp_path_factory) -> Path:
    """A checkpoint quantised with `MIXED`, written by us, with a transformer in many shards."""
    folder = tmp_path_factory.mktemp("quantised") / "mixed"
    write(QwenImage21("small", str(small_checkpoint_21)), {"mixed": MIXED}, folder, None, 50_000)
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 3
    return folder


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_a_quantised_copy_computes_the_same_as_the_technique(saved, small_checkpoint_21, dtype):
    plain, loaded = (Checkpoint(folder).pipeline(dtype) for folder in (small_checkpoint_21, saved))
    before = generated(plain)
    with applied(plain.components, {"q": MIXED}):
        assert weight_storage(loaded.components) == weight_storage(plain.components)
        np.testing.assert_array_equal(generated(loaded), generated(plain))
    assert not np.array_equal(generated(loaded), before)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_a_quantised_copy_is_streamed(saved, dtype):
    """A linear is quantised in the second block but not in the first, and `out` has four kinds of storage."""
    resident, streamed = both(saved, dtype)
    np.testing.assert_array_equal(generated(streamed), generated(resident))


@pytest.mark.parametrize("technique", thinned(["affine4", "affine8", "mxfp4", "mxfp8", "nvfp4"], keep=2))
def test_the_command(small_checkpoint_21, tmp_path, capsys, technique):
    target = tmp_path / "quantised"
    arguments = ["model=qwen_image_21", f"technique=[{technique}]", f"from={small_checkpoint_21}", f"to={target}"]
    assert main(["models", *arguments]) == 0, capsys.readouterr().err
    assert f"model=qwen_image_21 model.path={target} uses it" in capsys.readouterr().out
    files = {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}
    originals = {str(p.relative_to(small_checkpoint_21)) for p in small_checkpoint_21.rglob("*") if p.is_file()}
    assert files == originals - {"README.md"}
    for name in ("model_index.json", "processor/chat_template.jinja", "vae/diffusion_pytorch_model.safetensors"):
        assert (target / name).read_bytes() == (small_checkpoint_21 / name).read_bytes()
    resident, streamed = both(target, mx.bfloat16)
    assert isinstance(resident.transformer.transformer_blocks[1].img_mlp.gate_layer, QuantizedLinear)
    np.testing.assert_array_equal(generated(streamed), generated(resident))
    assert main(["models", *arguments[:2], f"from={target}", f"to={tmp_path}/again"]) == 2
    assert "is quantised already" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model.", ""])
def test_an_mlx_text_encoder(small_checkpoint_21, tmp_path, prefix):
    """As mlx-lm and mlx-vlm write it: a quantised embedding, entries by layer, a vision tower of other names."""
    folder = shutil.copytree(small_checkpoint_21, tmp_path / "mlx")
    original = Checkpoint(small_checkpoint_21).text_encoder(mx.bfloat16)
    common = {"group_size": 64, "bits": 4, "mode": "affine"}
    kept = "layers.0.self_attn.o_proj"
    nn.quantize(original, **common, class_predicate=lambda path, m: hasattr(m, "to_quantized") and path != kept)
    tensors = {prefix + name: array for name, array in tree_flatten(original.parameters())}
    tensors |= {f"{prefix}norm.weight": mx.ones((64,)), "vision_tower.blocks.0.norm1.weight": mx.ones((8,))}
    for file in (folder / "text_encoder").glob("*.safetensors*"):
        file.unlink()
    mx.save_safetensors(str(folder / "text_encoder" / "model.safetensors"), tensors, {"format": "mlx"})
    file = folder / "text_encoder" / "config.json"
    entry = common | {prefix + kept: False}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization": entry, "quantization_config": entry}))
    ids = mx.array(np.random.default_rng(4).integers(0, 1000, (2, 7)))
    checkpoint = Checkpoint(folder)
    loaded, streamed = checkpoint.text_encoder(mx.bfloat16), Checkpoint(folder, stream=True).text_encoder(mx.bfloat16)
    assert f"{prefix}norm.weight" in checkpoint.ignored["text_encoder"]
    assert not hasattr(loaded.layers[0].self_attn.o_proj, "bits")
    stored, found = (dict(tree_flatten(model.parameters())) for model in (original, loaded))
    assert stored.keys() == found.keys()
    assert all(mx.array_equal(array, stored[name]) for name, array in found.items())
    assert mx.array_equal(*(model(ids, None, mx.bfloat16) for model in (loaded, streamed)))
