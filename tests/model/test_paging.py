"""Paged blocks give the same bits as resident blocks, also with probes and techniques, in the memory of two blocks."""

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from precision_lab.cli import main
from precision_lab.device import page_cache
from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.lab.bench import _arrays
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import recorder_of
from precision_lab.lab.teacher import Teacher
from precision_lab.model import paging, weights
from precision_lab.model.layers import LayerNorm
from precision_lab.model.paging import TensorReader, class_of
from precision_lab.model.quantized import QuantizedLinear
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.rope import RotaryEmbedding
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.model.rotary import Grid
from precision_lab.model.text_to_image.subject import TextToImage
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.synthetic import PRESETS, make
from precision_lab.techniques.base import applied
from precision_lab.techniques.compensated_residual import CompensatedResidual
from precision_lab.techniques.compiled_blocks import CompiledBlocks
from precision_lab.techniques.fast.cpu import FastCPU, _FastLinear
from precision_lab.techniques.ffn_scaling import FFNScaling
from precision_lab.techniques.float8_weights import Float8Weights
from precision_lab.techniques.float32 import Float32
from precision_lab.techniques.float32_residual import Float32Residual
from precision_lab.techniques.ggml_scales import GGMLScales
from precision_lab.techniques.narrow import Narrow
from precision_lab.techniques.parts.ablation import WithoutBias
from precision_lab.techniques.parts.weight_storage import model_storage, weight_storage
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.reordered_sums import ReorderedSums
from precision_lab.techniques.scaled_feed_forward import ScaledFeedForward
from tests.model.oracle import ours, random_inputs
from tests.model.paged import block_nbytes, measure_blocks, widen
from tests.spread import slow, thinned
from tests.subjects import case, picture, source
from tests.techniques.configured import SITES
from tests.undrawn import undrawn

DTYPES = [mx.float32, mx.bfloat16, mx.float16]
CASE = case("two red circles", 3, steps=2, guidance_scale=4.0, height=48, width=32)
LINEAR = "transformer_blocks.2.img_mlp.net.2"
FILES = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.fixture
def folder(small_checkpoint, tmp_path):
    """A copy that tests may damage."""
    return shutil.copytree(small_checkpoint, tmp_path / "checkpoint")


def both(folder, dtype, **settings):
    """The resident and the paged pipeline."""
    return [Checkpoint(folder, stream=stream, **settings).pipeline(dtype) for stream in (False, True)]


def generated(pipeline) -> np.ndarray:
    return picture(TextToImage(pipeline), CASE)


def rejection(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def held(*modules) -> int:
    """Bytes of all arrays that the modules hold, including private ones."""
    return sum(array.nbytes for array in _arrays(list(modules)))


# --- the same bits


@pytest.mark.parametrize(("dtype", "weights_dtype"), thinned(product(DTYPES, [None, mx.float16]), keep=2), ids=str)
def test_a_generation_has_the_same_bits_every_time(small_checkpoint, dtype, weights_dtype):
    resident, paged = both(small_checkpoint, dtype, weights_dtype=weights_dtype)
    expected = generated(resident)
    for _ in range(2):
        np.testing.assert_array_equal(generated(paged), expected)


@pytest.mark.parametrize(
    ("sites", "ports"),
    [
        ("{transformer_blocks.*,norm_out}", ["out"]),
        ("**", ["in", "out"]),
        ("text_encoder:**", ["out"]),
        slow(("{transformer_blocks.*,norm_out}", ["in", "out"])),
        slow(("**", ["out"])),
        slow(("text_encoder:**", ["in", "out"])),
    ],
)
def test_probes_see_the_same_at_the_same_sites(small_checkpoint, sites, ports):
    rows = []
    pipelines = both(small_checkpoint, mx.bfloat16)
    plain = generated(pipelines[0])
    for pipeline in pipelines:
        recorder = recorder_of(RangeCatalogue([sites], ports))
        with observing(pipeline.components, [recorder]):
            np.testing.assert_array_equal(generated(pipeline), plain)
        rows.append(recorder.rows)
    assert len(rows[0]) > 0
    assert str(rows[0]) == str(rows[1])  # NaN equals itself as text


def test_modules_keep_their_addresses_and_weight_storage(small_checkpoint):
    resident, paged = (pipeline.components for pipeline in both(small_checkpoint, mx.float32))
    assert [str(site) for site in walk(resident)] == [str(site) for site in walk(paged)]
    assert weight_storage(resident) == weight_storage(paged)
    assert model_storage(resident) == model_storage(paged)
    for ours_, theirs in zip(walk(resident), walk(paged), strict=True):
        assert list(ours_.module) == list(theirs.module)
        for key, value in ours_.module.items():
            if isinstance(value, mx.array):
                assert isinstance(theirs.module, type(ours_.module))
                assert mx.array_equal(theirs.module[key], value)


TECHNIQUES = {
    "wraps": FFNScaling([SITES["feed_forwards"]]),
    "wraps a leaf": Float32(["transformer_blocks.*.attn.norm_*", "text_encoder:layers.*.input_layernorm"]),
    "wraps blocks": Float32Residual(),
    "replaces operations": CompensatedResidual(),
    "quantises": QuantizedWeights([{"sites": "transformer_blocks.{0..2}.*_mlp.**.{proj,2}"}]),
    "quantises to float8": Float8Weights(SITES["block_linears"]),
    "copies a linear and changes its bias": ScaledFeedForward(),
    "copies a linear and takes its bias away": WithoutBias(),
    "copies a linear and keeps its bias": GGMLScales(),
    "permutes weights": ReorderedSums(SITES["reordered"]),
}


@pytest.mark.parametrize("technique", thinned(TECHNIQUES.values(), keep=3), ids=TECHNIQUES)
def test_techniques_have_the_same_bits(small_checkpoint, technique):
    outputs = []
    for pipeline in both(small_checkpoint, mx.bfloat16):
        with applied(pipeline.components, {"it": technique}):
            outputs.append(generated(pipeline))
        outputs.append(generated(pipeline))
    rewritten, plain, *paged = outputs
    np.testing.assert_array_equal(paged[0], rewritten)
    np.testing.assert_array_equal(paged[1], plain)


def test_narrowed_weights(folder):
    """fp32 weights that bfloat16 cannot represent."""
    file = folder / FILES["transformer"]
    save_file({name: t.astype(np.float32) * np.float32(1.001) for name, t in load_file(file).items()}, file)
    x = mx.array(np.random.default_rng(0).standard_normal((1, 3, 256), dtype=np.float32))
    outputs = []
    for pipeline in both(folder, mx.float32):
        with applied(pipeline.components, {"it": Narrow([LINEAR], dtype="bfloat16")}):
            outputs.append(pipeline.transformer.transformer_blocks[2].img_mlp.net[2](x))
    assert mx.array_equal(*outputs)


def test_compiled_blocks_are_rejected(small_checkpoint):
    _, paged = both(small_checkpoint, mx.bfloat16)
    with pytest.raises(InputError, match="PagedBlock"), applied(paged.components, {"it": CompiledBlocks()}):
        pass


@pytest.mark.slow
def test_local_error_is_the_same(small_checkpoint):
    """The teacher calls replicas of modules outside their blocks, next to those of the reference."""
    rows = []
    for stream in (False, True):
        models = source(small_checkpoint, stream=stream)
        reference, narrow = models.load(mx.float32), models.load(mx.bfloat16)
        sites = [LINEAR, "transformer_blocks.*.attn.attend", "transformer_blocks.*"]
        teacher = Teacher(models.layout, sites, {0, 1})
        variants = {
            "plain": (narrow, mx.bfloat16, {}),
            "scaled": (narrow, mx.bfloat16, {"it": FFNScaling([SITES["feed_forwards"]])}),
            "same": (reference, mx.float32, {}),
        }
        with teacher.shadowing(variants, CASE), teacher.watching(reference.components):
            picture(reference, CASE, teacher.step)
        rows.append(teacher.rows)
    assert len(rows[0]) > 0
    assert str(rows[0]) == str(rows[1])


@pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="fast replacements for CPUs")
@pytest.mark.parametrize(("dtype", "weights_dtype"), thinned(product(DTYPES, [None, mx.float16]), keep=2), ids=str)
def test_replacements_that_evaluate_during_a_call_have_the_same_bits(
    small_checkpoint, monkeypatch, dtype, weights_dtype
):
    monkeypatch.setattr("precision_lab.techniques.fast.cpu._FEW_WEIGHTS", 0)
    monkeypatch.setattr("precision_lab.techniques.fast.cpu._FEW_ELEMENTS", 0)
    outputs, replaced = [], []
    for pipeline in both(small_checkpoint, dtype, weights_dtype=weights_dtype):
        around = held(pipeline.transformer)
        with applied(pipeline.components, {"fast": FastCPU()}):
            outputs.append(generated(pipeline))
            replaced.append([str(site) for site in walk(pipeline.components) if class_of(site.module) is _FastLinear])
            assert held(pipeline.transformer) == around, "a replacement holds the arrays that it has read"
    np.testing.assert_array_equal(*outputs)
    assert replaced[0] == replaced[1]
    assert len(replaced[0]) > 4 * 10


def test_the_next_block_is_read_while_one_computes(small_checkpoint, monkeypatch):
    """The names to read ahead are known after the call of the first block."""
    transformer = both(small_checkpoint, mx.float32)[1].transformer
    take, read_names, seen = TensorReader._take, [], {}
    monkeypatch.setattr(TensorReader, "_take", lambda reader, name: (read_names.append(name), take(reader, name))[1])

    class Watched(LayerNorm):
        def __call__(self, x):
            seen[self.index] = {int(name.split(".")[1]) for name in read_names if name.endswith("txt_mlp.net.2.weight")}
            return super().__call__(x)

    for index, block in enumerate(transformer.transformer_blocks):
        block.img_norm1 = Watched()
        block.img_norm1.index = index
    ours(transformer, random_inputs(np.random.default_rng(0), (4, 4), text_width=64), mx.float32)
    assert seen == {0: set(), 1: {0, 1, 2}, 2: {0, 1, 2, 3}, 3: {0, 1, 2, 3}}
    assert len(read_names) == len(set(read_names)), "read twice"


def test_dtypes_do_not_share_paged_weights(small_checkpoint):
    models = source(small_checkpoint, stream=True)
    wide, narrow = models.load(mx.float32), models.load(mx.bfloat16)
    assert wide.pipeline.transformer is not narrow.pipeline.transformer
    assert models.load(mx.bfloat16) is narrow


@pytest.mark.parametrize("bits", [4, slow(8)])
def test_a_checkpoint_of_quantised_weights_has_the_same_bits(folder, bits):
    """Quantises, as mlx-lm writes them, the linears that are divisible into groups of 64."""
    file = folder / FILES["transformer"]
    tensors = dict(mx.load(str(file)))
    for name, tensor in list(tensors.items()):
        path = name.removesuffix(".weight")
        if ".img_mlp." in name and path != name:
            tensors[name], tensors[f"{path}.scales"], tensors[f"{path}.biases"] = mx.quantize(tensor, 64, bits)
    mx.save_safetensors(str(file), tensors)
    config = json.loads((folder / "transformer/config.json").read_text())
    quantization = {"group_size": 64, "bits": bits}
    (folder / "transformer/config.json").write_text(json.dumps(config | {"quantization": quantization}))
    for dtype in (mx.float32, mx.bfloat16):
        resident, paged = both(folder, dtype)
        assert isinstance(paged.transformer.transformer_blocks[0].img_mlp.net[2], QuantizedLinear)
        np.testing.assert_array_equal(generated(paged), generated(resident))


# --- memory


def test_memory_does_not_grow_with_depth(tmp_path, monkeypatch):
    """In a call, a block and the next are in memory, and fp32 copies of weights if they are narrower; then the next."""
    micro, peaks, block = PRESETS["micro"], {}, 0
    inputs = random_inputs(np.random.default_rng(0), (4, 4), text_width=64)
    for layers in (4, 12):
        config = replace(micro.transformer, num_layers=layers, num_attention_heads=8)
        make(replace(micro, transformer=config), tmp_path / str(layers))
        for wide in (False, True):
            if wide:
                widen(tmp_path / str(layers) / "transformer")
            block = block_nbytes(tmp_path / str(layers) / "transformer")
            model = Checkpoint(tmp_path / str(layers), stream=True).transformer(mx.float32)
            mx.eval(model.parameters())
            for _ in range(2):  # the first pass has no names to read ahead in its first block
                peaks[layers], after = measure_blocks(monkeypatch, layers, partial(ours, model, inputs, mx.float32))
                assert len(after) == 1
                assert np.all(np.abs(after[:, :-1] - block) < 0.05 * block), "more than the next block is in memory"
                assert np.all(np.abs(after[:, -1]) < 0.05 * block), "a block is still in memory"
                assert peaks[layers] < (2.1 if wide else 2.1 + 2) * block
    assert block > 1e6
    assert abs(peaks[12] - peaks[4]) < 0.05 * block


def test_a_block_is_released_before_the_next_is_read(small_checkpoint, monkeypatch):
    """However slow the disk is: before each block, something else keeps the queue of reading busy for 0.1 s."""
    model = Checkpoint(small_checkpoint, stream=True).transformer(mx.float32)
    mx.eval(model.parameters())
    inputs = random_inputs(np.random.default_rng(0), (4, 4), text_width=64)
    block = block_nbytes(small_checkpoint / "transformer")
    ours(model, inputs, mx.float32)  # the names to read ahead are known after the first block
    call = TensorReader.calling

    def slowly(reader, path, following):
        many = mx.broadcast_to(mx.array(1.0), (1 << 26,))
        mx.async_eval(mx.sum(many, stream=paging._reading_queue()))
        return call(reader, path, following)

    monkeypatch.setattr(TensorReader, "calling", slowly)
    _, after = measure_blocks(monkeypatch, len(model.transformer_blocks), partial(ours, model, inputs, mx.float32))
    assert np.all(after < 1.5 * block)


def test_files_larger_than_memory_are_released_as_they_are_used(small_checkpoint, monkeypatch):
    """Each tensor of a block is released once a call, after the block; nothing is released if the files fit memory."""
    released: list[page_cache.Extent] = []
    monkeypatch.setattr(page_cache, "beside", lambda action, extents: action(extents))
    monkeypatch.setattr(page_cache, "forget", released.extend)
    expected = generated(both(small_checkpoint, mx.float32)[1])
    monkeypatch.setattr(page_cache, "keeps", lambda nbytes: nbytes != held(*tensors.values()))
    tensors = weights.read(small_checkpoint / "transformer")
    paged = both(small_checkpoint, mx.float32)[1]
    assert released == []
    np.testing.assert_array_equal(generated(paged), expected)
    places = weights.extents(small_checkpoint / "transformer")
    of_blocks = [place for name, place in places.items() if name.startswith("transformer_blocks.")]
    passes = 2 * CASE.settings["steps"]  # with and without the prompt
    assert sorted(released) == sorted(of_blocks * passes)
    first = [place for name, place in places.items() if name.startswith("transformer_blocks.0.")]
    assert set(released[: len(first)]) == set(first)


def test_the_next_two_blocks_are_prefetched(small_checkpoint, monkeypatch):
    prefetched: list[set[page_cache.Extent]] = []
    monkeypatch.setattr(page_cache, "beside", lambda action, extents: action(extents))
    monkeypatch.setattr(page_cache, "prefetch", lambda extents: prefetched.append(set(extents)))
    transformer = both(small_checkpoint, mx.float32)[1].transformer
    places = weights.extents(small_checkpoint / "transformer")
    of_block = [
        {place for name, place in places.items() if name.startswith(f"transformer_blocks.{index}.")}
        for index in range(len(transformer.transformer_blocks))
    ]
    ours(transformer, random_inputs(np.random.default_rng(0), (4, 4), text_width=64), mx.float32)
    assert prefetched == [of_block[i] for i in (1, 2, 2, 3, 3)]


def test_counting_held_arrays_reads_nothing(small_checkpoint):
    resident, paged = both(small_checkpoint, mx.float32)
    blocks = held(*resident.transformer.transformer_blocks, *resident.text_encoder.layers)
    assert held(*paged.components.values()) == held(*resident.components.values()) - blocks
    before = mx.get_active_memory()
    mx.eval(list(paged.components.values()))
    assert mx.get_active_memory() - before <= held(*paged.components.values()) + 4096 * 600


def test_weights_created_by_techniques_are_held_and_counted(small_checkpoint):
    _, paged = both(small_checkpoint, mx.bfloat16)
    transformer = paged.transformer
    before = held(transformer)
    rules = [{"sites": "transformer_blocks.*.*_mlp.**.{proj,2}"}]
    with applied(paged.components, {"it": QuantizedWeights(rules)}):
        names = [f"{stream}_mlp.net.{at}" for stream in ("img", "txt") for at in ("0.proj", "2")]
        quantised = {
            str(site): site.module for site in walk({"transformer": transformer}) if site.path.endswith(tuple(names))
        }
        assert len(quantised) == 16
        mx.eval(list(quantised.values()))
        assert held(transformer) - before == held(*quantised.values()) > 0
    assert held(transformer) == before


# --- exceptions


@pytest.mark.parametrize("module", ["attn", "img_mlp", "txt_add2"])
def test_an_exception_in_a_block_leaves_the_model_as_it_was(small_checkpoint, module):
    resident, paged = both(small_checkpoint, mx.float32)
    expected = generated(resident)
    broken = getattr(paged.transformer.transformer_blocks[2], module)
    kind = type(broken)

    def fail(self, *args):
        raise RuntimeError("broken")

    broken.__class__ = type("Broken", (kind,), {"__call__": fail})
    around = held(paged.transformer)
    with pytest.raises(RuntimeError, match="broken"):
        generated(paged)
    assert held(paged.transformer) == around
    broken.__class__ = kind
    np.testing.assert_array_equal(generated(paged), expected)


def test_a_block_called_alone(small_checkpoint):
    """Blocks called out of order drop the tensors that were read ahead for another block."""
    resident, paged = (p.transformer.transformer_blocks for p in both(small_checkpoint, mx.float32))
    rng = np.random.default_rng(1)
    x = mx.array(rng.standard_normal((1, 5, 64), dtype=np.float32))
    for index in (2, 0, 3, 3, 1, 2):
        linear = [blocks[index].img_mlp(x) for blocks in (resident, paged)]
        assert mx.array_equal(*linear)
        rotations = RotaryEmbedding((8, 12, 12))(Grid(1, 5), 5)
        streams = [blocks[index](Streams(img=x, txt=-x), x[:, 0], rotations) for blocks in (resident, paged)]
        assert all(mx.array_equal(a, b) for a, b in zip(*streams, strict=True))


# --- rejected before anything runs, as without paging


@pytest.mark.parametrize(
    ("part", "name"),
    [("transformer", f"{LINEAR}.bias"), ("text_encoder", "model.layers.1.self_attn.q_proj.bias")],
)
def test_checkpoints_are_rejected_with_the_same_message(folder, part, name):
    file = folder / FILES[part]
    whole, tensors = file.read_bytes(), load_file(file)
    faults = [
        lambda: file.write_bytes(whole[:-1]),
        lambda: file.write_bytes(whole[:50]),
        lambda: file.write_bytes(b""),
        lambda: save_file({n: t for n, t in tensors.items() if n != name}, file),
        lambda: save_file(tensors | {f"{name}_g": tensors[name]}, file),
        lambda: save_file(tensors | {name: tensors[name][:-1].copy()}, file),
        lambda: save_file(tensors | {name: tensors[name].astype(np.int32)}, file),
        file.unlink,
    ]
    for damage in faults:
        damage()
        resident, paged = (
            rejection(lambda stream=stream: getattr(Checkpoint(folder, stream=stream), part)(mx.float32))
            for stream in (False, True)
        )
        assert resident == paged


def test_settings_that_need_all_weights_are_rejected(small_checkpoint):
    assert "model.inflate=4" in rejection(lambda: Checkpoint(small_checkpoint, inflate=4, stream=True))
    assert "model.inflate=0.5" in rejection(lambda: source("/nowhere", inflate=0.5, stream=True))
    assert "expected true or false" in rejection(lambda: source("/nowhere", stream="yes"))
    assert source("/nowhere", inflate=1, stream=True).stream


# --- the command line


def test_a_run_has_the_same_tables(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = (
        *("sampler.steps=2", "image.height=32", "image.width=48", "prompts=[a red circle]", "seeds=[0]"),
        *("latency.min_rounds=2", "latency.max_rounds=2", "technique=[affine4]", "pinned.cases=null"),
    )
    resident, paged = tmp_path / "resident", tmp_path / "paged"
    for out, stream in ((resident, "false"), (paged, "true")):
        with undrawn():
            assert main([f"model.path={small_checkpoint}", f"model.stream={stream}", f"out={out}", *quick]) == 0
    for table in ("activations", "drift"):
        assert (resident / f"{table}.parquet").read_bytes() == (paged / f"{table}.parquet").read_bytes()
    images = sorted(file.name for file in (resident / "images").iterdir())
    assert len(images) == 3
    for name in images:
        assert (resident / "images" / name).read_bytes() == (paged / "images" / name).read_bytes()
    peaks = [
        {name: v["peak_memory_bytes"] for name, v in json.loads((run / "summary.json").read_text())["variants"].items()}
        for run in (resident, paged)
    ]
    assert peaks[1]["baseline"] < peaks[0]["baseline"]
