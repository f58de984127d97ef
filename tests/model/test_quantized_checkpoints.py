"""Quantised checkpoints written by us, mflux and mlx-lm compute as declared; contradictory ones are rejected."""

import json
import re
import shlex
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, walk
from precision_lab.lab.quantized_checkpoint import write
from precision_lab.model import weights
from precision_lab.model.quantized import QuantizedEmbedding, QuantizedLinear
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.layout import layout
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid
from precision_lab.techniques.base import applied
from precision_lab.techniques.batch_layout import BatchLayout
from precision_lab.techniques.ffn_scaling import FFNScaling
from precision_lab.techniques.float8_weights import Float8Weights
from precision_lab.techniques.float32 import Float32
from precision_lab.techniques.narrow_accumulators import NarrowAccumulators
from precision_lab.techniques.parts.weight_storage import weight_storage
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.reordered_sums import ReorderedSums
from tests.spread import thinned
from tests.subjects import source
from tests.techniques.configured import SITES
from tests.undrawn import undrawn

ATTENTION = "transformer_blocks.*.attn.{to_q,to_k,to_v,add_q_proj,add_k_proj,add_v_proj,to_out.0,to_add_out}"
MLPS = "transformer_blocks.*.{img,txt}_mlp.net.{0.proj,2}"
MIXED = QuantizedWeights(
    [
        {"sites": "transformer_blocks.0.attn.to_q", "keep": True},
        {"sites": "transformer_blocks.*.img_mod.1", "bits": 8},
        {"sites": "transformer_blocks.1.txt_mod.1", "bits": 3, "group_size": 32},
        {"sites": "transformer_blocks.2.txt_mod.1", "mode": "mxfp4"},
        {"sites": "transformer_blocks.3.txt_mod.1", "mode": "nvfp4"},
        {"sites": ATTENTION, "bits": 4},
        {"sites": MLPS, "bits": 4},
        {"sites": "{img_in,txt_in,proj_out,norm_out.linear}", "mode": "mxfp8"},
        {"sites": "text_encoder:layers.*.{self_attn.{q,k,v,o}_proj,mlp.{gate,up,down}_proj}", "bits": 6},
    ]
)
UNIFORM = QuantizedWeights([{"sites": f"{{{ATTENTION},{MLPS}}}", "bits": 4}])


def components(checkpoint, dtype):
    modules = {"text_encoder": checkpoint.text_encoder(dtype), "transformer": checkpoint.transformer(dtype)}
    return Components(modules, layout(checkpoint.transformer_config().num_layers))


def outputs(models, dtype):
    """The outputs of both components, as fp32 arrays."""
    rng = np.random.default_rng(3)
    latents, text = (mx.array(rng.standard_normal((2, n, 64), dtype=np.float32)).astype(dtype) for n in (15, 6))
    velocity = models["transformer"](latents, mx.array([0.5, 0.25]), text, Grid(3, 5))
    states = models["text_encoder"](mx.array(rng.integers(0, 1000, (2, 9))), None, dtype)
    assert velocity.dtype == states.dtype == dtype
    return [np.array(a.astype(mx.float32)) for a in (velocity, states)]


def assert_same_outputs(folder, original, technique, dtype):
    """The folder gives the same bits as the technique on the original, and other bits than the plain original."""
    loaded = components(Checkpoint(folder), dtype)
    plain = components(Checkpoint(original), dtype)
    expected = outputs(plain, dtype)
    with applied(plain, {"q": technique}):
        assert weight_storage(loaded) == weight_storage(plain)
        for ours, theirs in zip(outputs(loaded, dtype), outputs(plain, dtype), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(outputs(loaded, dtype)[0], expected[0])


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def edit_json(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(scope="module")
def saved(small_checkpoint, tmp_path_factory):
    """A checkpoint quantised with `MIXED`, written by us, with a transformer in many shards."""
    folder = tmp_path_factory.mktemp("quantised") / "mixed"
    done = []
    write(source(small_checkpoint), {"mixed": MIXED}, folder, lambda *step: done.append(step), 100_000)
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1]
    return folder


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_a_saved_checkpoint_computes_the_same_as_the_technique(saved, small_checkpoint, dtype):
    assert_same_outputs(saved, small_checkpoint, MIXED, dtype)


def test_a_checkpoint_whose_blocks_differ_is_paged(saved):
    """A linear is quantised in the second block but not in the first, and there are four kinds of modulation."""
    resident, paged = (
        outputs(components(Checkpoint(saved, stream=stream), mx.bfloat16), mx.bfloat16) for stream in (False, True)
    )
    for ours, theirs in zip(paged, resident, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("technique", [ReorderedSums([MLPS]), NarrowAccumulators([ATTENTION])])
def test_techniques_on_paged_quantised_blocks_have_the_same_bits(saved, technique):
    results = []
    for stream in (False, True):
        models = components(Checkpoint(saved, stream=stream), mx.bfloat16)
        with applied(models, {"t": technique}):
            results.append(outputs(models, mx.bfloat16))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_files_are_opened_once_a_pass_and_headers_once(saved, monkeypatch):
    """However often, and in whatever order, the parameters of a module are requested."""
    headers, loads, load, check_header = [], [], mx.load, weights.check_header
    monkeypatch.setattr(weights, "check_header", lambda file: headers.append(file) or check_header(file))
    monkeypatch.setattr(mx, "load", lambda file, **given: loads.append(file) or load(file, **given))
    checkpoint = Checkpoint(saved, stream=True)
    models = components(checkpoint, mx.bfloat16)
    files = [file for part in models for file in weights.shards(saved / part)]
    components(checkpoint, mx.float32)
    loads.clear()
    for passes in (1, 2, 3):
        weight_storage(models)
        assert len(loads) == passes * len(files)
    loads.clear()
    for passes in (1, 2):
        outputs(models, mx.bfloat16)
        assert len(loads) <= (passes + 1) * len(files)
    assert sorted(headers) == sorted(files)


def test_a_saved_checkpoint_is_complete(saved, small_checkpoint):
    files = {str(file.relative_to(saved)) for file in saved.rglob("*") if file.is_file()}
    originals = {str(file.relative_to(small_checkpoint)) for file in small_checkpoint.rglob("*") if file.is_file()}
    assert {name for name in originals if not name.endswith((".safetensors", ".index.json", "README.md"))} <= files
    assert len(weights.shards(saved / "transformer")) > 3
    for name in ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json"):
        assert (saved / name).read_bytes() == (small_checkpoint / name).read_bytes()
    config = json.loads((saved / "transformer" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert {key: config["quantization"][key] for key in ("bits", "group_size", "mode")} == {
        "bits": 4,
        "group_size": 64,
        "mode": "affine",
    }
    assert "transformer_blocks.0.attn.to_q" not in config["quantization"]
    text_encoder = json.loads((saved / "text_encoder" / "config.json").read_text())["quantization"]
    assert text_encoder == {"group_size": 64, "bits": 6, "mode": "affine"}
    loaded, original = (parameters(Checkpoint(folder).vae(mx.bfloat16)) for folder in (saved, small_checkpoint))
    assert all(mx.array_equal(array, original[name]) for name, array in loaded.items())


def test_mlx_loads_a_saved_checkpoint(saved):
    """Follows the procedure of mlx-lm: config.json determines the packing of modules that have scales."""
    config = json.loads((saved / "transformer" / "config.json").read_text())["quantization"]
    tensors = weights.read(saved / "transformer")
    ours, theirs = Checkpoint(saved).transformer(mx.bfloat16), Transformer(Checkpoint(saved).transformer_config())
    nn.quantize(
        theirs,
        **{key: config[key] for key in ("group_size", "bits", "mode")},
        class_predicate=lambda path, module: f"{path}.scales" in tensors and config.get(path, True),
    )
    theirs.load_weights(list(tensors.items()), strict=True)
    assert {p: (m.bits, m.group_size, m.mode) for p, m in ours.named_modules() if hasattr(m, "bits")} == {
        p: (m.bits, m.group_size, m.mode) for p, m in theirs.named_modules() if hasattr(m, "bits")
    }


def test_the_command(small_checkpoint, tmp_path, capsys):
    target = tmp_path / "quantised"
    arguments = ["technique=[affine4_img_mod8]", f"from={small_checkpoint}", f"to={target}"]
    assert main(["models", *arguments]) == 0
    assert f"model.path={target} uses it" in capsys.readouterr().out
    transformer = Checkpoint(target).transformer(mx.bfloat16)
    assert {block.img_mod[1].bits for block in transformer.transformer_blocks} == {8}
    assert {block.txt_mod[1].bits for block in transformer.transformer_blocks} == {4}
    for wrong, message in (
        (arguments, "exists, expected a new or an empty folder"),
        (arguments[:2], "to= is missing"),
        (arguments[1:], "technique= is missing"),
        ([arguments[0], arguments[2]], "from= is missing"),
        (["technique=[nvfp4_scaled]", *arguments[1:]], "has a scale a tensor, which this layout of files cannot state"),
        (["technique=[fp8]", *arguments[1:]], "technique fp8 is Float8Weights, expected QuantizedWeights"),
        (["make=micro", *arguments], "expected one"),
        ([arguments[0], f"from={target}", f"to={tmp_path}/again"], "is quantised already"),
    ):
        assert main(["models", *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["quantised"]


# mflux: maps our module names to its own, as in its QwenWeightMapping
MFLUX_NAMES = {
    r"attn\.to_out\.0": "attn.attn_to_out.0",
    r"(img|txt)_mod\.1": r"\1_mod_linear",
    r"(img|txt)_mlp\.net\.0\.proj": r"\1_ff.mlp_in",
    r"(img|txt)_mlp\.net\.2": r"\1_ff.mlp_out",
}


def mflux_name(name):
    for ours, theirs in MFLUX_NAMES.items():
        name = re.sub(ours, theirs, name)
    return name


def write_mflux(folder, tensors, bits, num_shards=3):
    """Writes what mflux's ModelSaver writes: metadata in every shard and in the index, and no config.json."""
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    metadata = {"quantization_level": str(bits), "mflux_version": "0.24.0"}
    weight_map = {}
    for number in range(num_shards):
        shard = dict(list(tensors.items())[number::num_shards])  # puts scales and weights into different shards
        mx.save_safetensors(str(folder / f"{number}.safetensors"), shard, metadata)
        weight_map.update(dict.fromkeys(shard, f"{number}.safetensors"))
    index = {"metadata": metadata, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def img_mod_at_8(path, module):
    """The predicate that mflux uses at 4 bits."""
    return hasattr(module, "to_quantized") and ({"bits": 8} if ".img_mod" in path else True)


@pytest.fixture
def mflux_folder(small_checkpoint, tmp_path):
    """A published folder with the transformer and text encoder that mflux would save at 4 bits."""
    folder = tmp_path / "mflux"
    shutil.copytree(small_checkpoint, folder)
    transformer = Checkpoint(small_checkpoint).transformer(mx.bfloat16)
    nn.quantize(transformer, bits=4, class_predicate=img_mod_at_8)
    write_mflux(folder / "transformer", {mflux_name(n): a for n, a in parameters(transformer).items()}, 4)
    encoder = parameters(Checkpoint(small_checkpoint).text_encoder(mx.bfloat16))
    constants = [f"layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
    named = {f"encoder.{name}": array for name, array in encoder.items()}
    named |= {f"encoder.{name}": mx.ones((16,)) for name in ("rotary_emb.inv_freq", *constants)}
    write_mflux(folder / "text_encoder", named | {"encoder.visual.merger.ln_q.weight": mx.ones((8,))}, 4)
    return folder


AROUND = "{img_in,txt_in,proj_out,norm_out.linear,time_text_embed.timestep_embedder.{linear_1,linear_2}}"
EVERY_LINEAR = f"{{{ATTENTION},{MLPS},transformer_blocks.*.txt_mod.1,{AROUND}}}"


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_an_mflux_folder(mflux_folder, small_checkpoint, dtype):
    technique = QuantizedWeights(
        [{"sites": "transformer_blocks.*.img_mod.1", "bits": 8}, {"sites": EVERY_LINEAR, "bits": 4}]
    )
    assert_same_outputs(mflux_folder, small_checkpoint, technique, dtype)
    assert "visual.merger.ln_q.weight" in ignored_of(mflux_folder)


def ignored_of(folder):
    checkpoint = Checkpoint(folder)
    checkpoint.text_encoder(mx.bfloat16)
    return checkpoint.ignored["text_encoder"]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_paged_blocks_compute_the_same(mflux_folder, dtype):
    resident, paged = (components(Checkpoint(mflux_folder, stream=stream), dtype) for stream in (False, True))
    for ours, theirs in zip(outputs(paged, dtype), outputs(resident, dtype), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_extents_have_published_names(mflux_folder):
    for part in ("transformer", "text_encoder"):
        tensors, extents = weights.read(mflux_folder / part), weights.extents(mflux_folder / part)
        assert {name: tensor.nbytes for name, tensor in tensors.items()} == {
            name: extent.nbytes for name, extent in extents.items()
        }


@pytest.mark.parametrize("bits", thinned([3, 5, 6, 8], [3, 8]))
def test_mflux_at_other_levels(mflux_folder, small_checkpoint, bits):
    transformer = Checkpoint(small_checkpoint).transformer(mx.bfloat16)
    nn.quantize(transformer, bits=bits)
    write_mflux(mflux_folder / "transformer", {mflux_name(n): a for n, a in parameters(transformer).items()}, bits)
    loaded = Checkpoint(mflux_folder).transformer(mx.bfloat16)
    assert parameters(loaded).keys() == parameters(transformer).keys()
    assert {m.bits for m in loaded.modules() if isinstance(m, nn.QuantizedLinear)} == {bits}
    for name, array in parameters(loaded).items():
        assert mx.array_equal(array, parameters(transformer)[name])


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("6", "packed with 4 bits by its shapes, expected 6 (quantization_level in the header) or 8"),
        ("None", "quantised, but the header's quantization_level is None"),
        ("four", "quantization_level is 'four'"),
    ],
)
def test_an_mflux_level_that_contradicts_the_weights(mflux_folder, level, message):
    stored = {}
    for file in weights.shards(mflux_folder / "transformer"):
        stored |= mx.load(str(file))
    write_mflux(mflux_folder / "transformer", stored, level)
    rejected(mflux_folder / "transformer", Checkpoint(mflux_folder).transformer, message)


def test_mflux_shards_of_two_models(mflux_folder):
    folder = mflux_folder / "transformer"
    tensors = mx.load(str(folder / "1.safetensors"))
    mx.save_safetensors(str(folder / "1.safetensors"), dict(tensors), {"quantization_level": "8"})
    rejected(folder, Checkpoint(mflux_folder).transformer, "quantization_level is '8'", "'4'")


def rejected(folder, load, *named):
    with pytest.raises(InputError) as caught:
        load(mx.bfloat16)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert all(text in message for text in (str(folder), *named)), message


# mlx-lm


@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model.", ""])
def test_an_mlx_lm_text_encoder(small_checkpoint, tmp_path, prefix):
    """With a quantised embedding, as `mlx.nn.quantize` writes it, per-layer entries, and unused parts."""
    folder = tmp_path / "mlx"
    shutil.copytree(small_checkpoint, folder)
    original = Checkpoint(small_checkpoint).text_encoder(mx.bfloat16)
    common = {"group_size": 64, "bits": 4, "mode": "affine"}
    entries = {
        "layers.0.mlp.down_proj": {"group_size": 32, "bits": 8},
        "layers.1.mlp.down_proj": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
        "layers.0.self_attn.o_proj": False,
        "layers.1.self_attn.o_proj": {"bits": 3},  # in groups of 64, MLX's default
    }
    nn.quantize(
        original,
        **common,
        class_predicate=lambda path, module: hasattr(module, "to_quantized") and entries.get(path, True),
    )
    beside = {"lm_head.": "lm_head", "language_model.model.": "language_model.lm_head"}.get(prefix, "lm_head")
    tensors = {prefix + name: array for name, array in parameters(original).items()}
    tensors |= {f"{beside}.weight": mx.zeros((4, 8), mx.uint32), f"{beside}.scales": mx.zeros((4, 1))}
    for file in (folder / "text_encoder").glob("*.safetensors*"):
        file.unlink()
    mx.save_safetensors(str(folder / "text_encoder" / "model.safetensors"), tensors, {"format": "mlx"})
    entry = common | {prefix + path: value for path, value in entries.items()} | {beside: {"bits": 8}}
    edit_json(folder / "text_encoder" / "config.json", quantization=entry, quantization_config=entry)
    loaded = Checkpoint(folder).text_encoder(mx.bfloat16)
    assert isinstance(loaded.embed_tokens, QuantizedEmbedding)
    assert type(loaded.layers[0].self_attn.q_proj) is QuantizedLinear
    assert not hasattr(loaded.layers[0].self_attn.o_proj, "bits")
    forms = [
        {path: (m.bits, m.group_size, m.mode) for path, m in model.named_modules() if hasattr(m, "bits")}
        for model in (loaded, original)
    ]
    assert forms[0] == forms[1]
    assert all(mx.array_equal(array, parameters(original)[name]) for name, array in parameters(loaded).items())
    decoded = Checkpoint(small_checkpoint).text_encoder(mx.float32)
    for path, module in original.named_modules():
        if hasattr(module, "bits"):
            scales, biases = module.scales, module.get("biases")
            if biases is not None:
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            weight = mx.dequantize(module.weight, scales, biases, module.group_size, module.bits, module.mode)
            decoded.load_weights([(f"{path}.weight", weight.astype(mx.float32))], strict=False)
    ids = mx.array(np.random.default_rng(4).integers(0, 1000, (2, 7)))
    reference = Checkpoint(folder).text_encoder(mx.float32)
    assert mx.array_equal(reference(ids, None, mx.float32), decoded(ids, None, mx.float32))


# a small module: each possible fault of a folder


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 64)
        self.blocks = [nn.Linear(64, 32), nn.Linear(32, 64, bias=False)]
        self.norm = nn.RMSNorm(64)


COMMON = {"group_size": 32, "bits": 4, "mode": "affine"}
ENTRY = COMMON | {"blocks.0": {"group_size": 64, "bits": 8, "mode": "affine"}, "embed": {"mode": "mxfp4"}}


@pytest.fixture
def stored():
    """Tensors and config.json that fit the model."""
    model = Model()
    model.set_dtype(mx.bfloat16)
    choose = {**{f"blocks.{i}": COMMON for i in range(2)}, **{k: v for k, v in ENTRY.items() if isinstance(v, dict)}}
    nn.quantize(model, class_predicate=lambda path, module: choose.get(path, False))
    return parameters(model), {"quantization": dict(ENTRY)}


def save(folder, tensors, config, metadata=None):
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata or {})
    (folder / "config.json").write_text(json.dumps(config))


def test_the_small_model_loads(tmp_path, stored):
    save(tmp_path, *stored)
    model = Model()
    assert weights.load(model, tmp_path) == []
    assert [type(m) for m in (model.embed, *model.blocks)] == [QuantizedEmbedding, QuantizedLinear, QuantizedLinear]
    assert [m.bits for m in (model.embed, *model.blocks)] == [4, 8, 4]
    assert all(mx.array_equal(array, stored[0][name]) for name, array in parameters(model).items())
    repeated = {"quantization_config": stored[1]["quantization"]}
    for config in (repeated, stored[1] | repeated):
        save(tmp_path, stored[0], config)
        weights.load(Model(), tmp_path)


def without(*names):
    return lambda tensors, entry: [tensors.pop(name) for name in names]


def recast(name, dtype):
    return lambda tensors, entry: tensors.update({name: tensors[name].astype(dtype)})


def reshaped(name, shape):
    return lambda tensors, entry: tensors.update({name: mx.zeros(shape, tensors[name].dtype)})


def declare(**entries):
    return lambda tensors, entry: entry.update({key.replace("__", "."): value for key, value in entries.items()})


def undeclare(*keys):
    return lambda tensors, entry: [entry.pop(key) for key in keys]


FAULTS = {
    "no scales": (
        without("blocks.1.scales", "blocks.1.biases"),
        "blocks.1.weight is U32",
        "blocks.1.scales is missing",
    ),
    "no weight": (without("blocks.1.weight"), "blocks.1.weight is missing"),
    "no biases": (without("blocks.1.biases"), "blocks.1.biases is missing"),
    "biases of mxfp4": (
        lambda t, e: t.update({"embed.biases": t["embed.scales"] * 1.0}),
        "embed.biases",
        "one too many",
    ),
    "no bias": (without("blocks.0.bias"), "blocks.0.bias is missing"),
    "weight not packed": (recast("blocks.1.weight", mx.bfloat16), "blocks.1.weight is bfloat16", "packed uint32"),
    "integer scales": (recast("blocks.1.scales", mx.uint8), "blocks.1.scales is uint8", "float32"),
    "integer biases": (recast("blocks.1.biases", mx.int32), "blocks.1.biases is I32", "expected F32, F16 or BF16"),
    "float scales of mxfp4": (recast("embed.scales", mx.float32), "embed.scales is float32", "uint8"),
    "packed norm": (
        lambda t, e: t.update({"norm.weight": mx.zeros((8,), mx.uint32), "norm.scales": mx.zeros((1,))}),
        "norm is RMSNorm, expected a linear or an embedding",
    ),
    "unknown module": (
        lambda t, e: t.update({"block.0.scales": t["blocks.0.scales"]}),
        "unknown tensor block.0.scales",
    ),
    "weight shape": (reshaped("blocks.1.weight", (64, 8)), "(64, 8)", "expected (64, 4)", "4 bits in groups of 32"),
    "scales shape": (reshaped("blocks.1.scales", (64, 2)), "blocks.1.scales", "(64, 2)", "expected (64, 1)"),
    "rows": (reshaped("blocks.0.weight", (31, 16)), "(31, 16)", "expected (32, 16)"),
    "vector": (reshaped("blocks.1.weight", (64,)), "(64,)", "expected (64, 4)"),
    "bits": (declare(bits=8), "blocks.1.weight", "(64, 4)", "expected (64, 8)", "8 bits"),
    "bits of a path": (declare(blocks__0={"bits": 4}), "blocks.0.weight", "(32, 16)", "expected (32, 8)"),
    "group size": (declare(group_size=64), "blocks.1: 32 input channels, which groups of 64 do not divide"),
    "mode": (declare(mode="mxfp4"), "blocks.1.biases is one too many: 4 bits in groups of 32, mxfp4"),
    "false": (declare(blocks__1=False), "blocks.1.scales", "false for blocks.1"),
    "not quantised": (
        lambda t, e: (
            [without("blocks.1.scales", "blocks.1.biases")(t, e), e.update({"blocks.1": COMMON})]
            and t.update({"blocks.1.weight": mx.zeros((64, 32))})
        ),
        "blocks.1.scales is missing: config.json says 4 bits",
    ),
    "unknown path": (declare(block__1=COMMON), "names block.1, no such module", "blocks.1"),
    "no bits": (undeclare("bits"), "quantization has no bits"),
    "no group size": (undeclare("group_size"), "quantization has no group_size"),
    "bits that MLX lacks": (declare(bits=7), "bits is 7, affine has 2, 3, 4, 5, 6, 8"),
    "bits of another type": (declare(bits="4"), "bits is '4'"),
    "unknown mode": (declare(mode="nf4"), "mode is 'nf4'"),
    "unknown entry": (declare(granularity="row"), "quantization.granularity is 'row'"),
    "unknown entry of a path": (declare(embed={"bit": 4}), "unknown entry 'bit'", "bits"),
    "quantised inputs": (declare(blocks__1={**COMMON, "quantize_input": True}), "unknown entry 'quantize_input'"),
    "another method": (declare(quant_method="bitsandbytes"), "quant_method is 'bitsandbytes'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_contradicts_itself_is_rejected(tmp_path, stored, fault):
    change, *named = FAULTS[fault]
    tensors, config = stored
    change(tensors, config["quantization"])
    save(tmp_path, tensors, config)
    assert_rejected(tmp_path, *named)


def assert_rejected(folder, *named):
    """The error is one line that names the fault, and the model is unchanged."""
    model = Model()
    before, modules = parameters(model), dict(model.named_modules())
    with pytest.raises(InputError) as caught:
        weights.load(model, folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert all(text in message for text in (str(folder), *named)), message
    assert all(mx.array_equal(array, before[name]) for name, array in parameters(model).items())
    assert all(module is modules[path] for path, module in model.named_modules())


@pytest.mark.parametrize("config", [{}, {"quantization": None}, {"bits": 4}])
def test_a_folder_without_a_declaration_is_rejected(tmp_path, stored, config):
    save(tmp_path, stored[0], config)
    assert_rejected(tmp_path, "config.json does not say how", '"quantization": {"group_size": 64')
    (tmp_path / "config.json").unlink()
    assert_rejected(tmp_path, "config.json does not say how")


@pytest.mark.parametrize("entry", [4, "affine", [COMMON], True])
def test_an_entry_that_is_no_object_is_rejected(tmp_path, stored, entry):
    save(tmp_path, stored[0], {"quantization": entry})
    assert_rejected(tmp_path, "quantization is", "expected an object")


def test_two_declarations_that_differ_are_rejected(tmp_path, stored):
    save(tmp_path, stored[0], {"quantization": ENTRY, "quantization_config": {**ENTRY, "bits": 8}})
    assert_rejected(tmp_path, "bits is 4 in quantization, but 8 in quantization_config")


def test_config_and_header_that_differ_are_rejected(tmp_path, stored):
    save(tmp_path, *stored, {"quantization_level": "8", "mflux_version": "0.24.0"})
    assert_rejected(tmp_path, "config.json says 4 bits", "the header of the weights 8")


def test_an_impossible_packing_of_mflux_is_rejected(tmp_path, stored):
    stored[0]["blocks.1.scales"] = stored[0]["blocks.1.biases"] = mx.zeros((64, 3))
    save(tmp_path, stored[0], {}, {"quantization_level": "4", "mflux_version": "0.24.0"})
    assert_rejected(tmp_path, "blocks.1", "(64, 4)", "(64, 3)", "no packing of 32 input channels")


# techniques on quantised checkpoints


@pytest.mark.parametrize(
    ("technique", "dtype"),
    [
        (FFNScaling([SITES["feed_forwards"]]), mx.bfloat16),
        (Float32(("transformer_blocks.*.img_mod.1", "proj_out")), mx.bfloat16),
        (ReorderedSums([ATTENTION, MLPS]), mx.float32),
        (NarrowAccumulators([MLPS]), mx.bfloat16),
        (BatchLayout([MLPS], copies=33), mx.float32),
    ],
    ids=lambda value: type(value).__name__,
)
def test_techniques_work_on_quantised_linears(saved, technique, dtype):
    models = components(Checkpoint(saved), dtype)
    plain = outputs(models, dtype)
    with applied(models, {"t": technique}):
        changed = outputs(models, dtype)
        assert np.isfinite(changed[0]).all()
        assert isinstance(technique, BatchLayout) or not np.array_equal(changed[0], plain[0])
    np.testing.assert_array_equal(outputs(models, dtype)[0], plain[0])


@pytest.mark.parametrize("technique", [Float8Weights(SITES["block_linears"]), UNIFORM])
def test_techniques_that_quantise_again_are_rejected(saved, technique):
    models = components(Checkpoint(saved), mx.bfloat16)
    refusal = pytest.raises(InputError, match=r"transformer_blocks\.[\w.]+ is (quantised already|QuantizedLinear)")
    with refusal, applied(models, {"t": technique}):
        pass


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("kind", [ReorderedSums, NarrowAccumulators])
@pytest.mark.parametrize("bias", [False, True])
def test_a_quantised_linear_computes_as_a_plain_one_with_the_decoded_weights(mode, kind, bias):
    rng = np.random.default_rng(5)
    linear = nn.Linear(192, 64, bias)
    linear.weight = mx.array(rng.normal(0, 0.3, (64, 192)).astype(np.float32))
    quantised = QuantizedLinear.from_linear(linear, mode=mode, group_size=None, bits=None)
    weight = mx.dequantize(
        quantised.weight,
        quantised.scales,
        quantised.get("biases"),
        group_size=quantised.group_size,
        bits=quantised.bits,
        mode=mode,
        dtype=mx.float32,
    )
    linear.weight = weight
    x = mx.array(rng.standard_normal((3, 5, 192), dtype=np.float32))
    results = []
    for module in (linear, quantised):
        holder = nn.Module()
        holder.linear = module
        with applied(Components({"transformer": holder}, layout(1)), {"t": kind(["linear"])}):
            results.append(holder.linear(x))
    assert mx.array_equal(*results)
    plain = x @ weight.T + (linear.bias if bias else 0)
    error = mx.linalg.norm(results[1] - plain) / mx.linalg.norm(plain)
    assert 0 < error < (1e-6 if kind is ReorderedSums else 1e-2)


@pytest.mark.slow
@undrawn()
def test_the_commands_of_the_page(small_checkpoint, tmp_path, monkeypatch):
    """The page's commands as written, with a folder for DIR and the settings of a short run."""
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "experiments/guide/quantized_checkpoints.md"
    block = re.search(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line)[3:] for line in block[1].splitlines()]
    assert [command[0] for command in commands] == ["models", "+exp=ffn_scaling"]
    quick = (
        *("prompts=[a red circle]", "seeds=[0]", "sampler.steps=1", "image.height=32", "image.width=48"),
        *("latency.min_rounds=0", "latency.max_rounds=0"),
    )
    for command in commands:
        words = [
            word.replace("Qwen/Qwen-Image", str(small_checkpoint)).replace("=DIR", f"={tmp_path / 'copy'}")
            for word in command
        ]
        assert main([*words, *(quick if command[0] != "models" else ())]) == 0
    (run,) = (tmp_path / "results/runs/ffn_scaling").iterdir()
    variants = json.loads((run / "summary.json").read_text())["variants"]
    assert all(0 < variants[name]["latent_rel_l2"] < np.inf for name in ("baseline", "ffn_scaling", "reordered"))


def test_storage_counts_the_stored_bytes(saved):
    loaded = components(Checkpoint(saved), mx.bfloat16)
    totals = weight_storage(loaded)
    for part, model in loaded.items():
        bits = sum(
            8 * array.nbytes
            for site in walk({part: model})
            if isinstance(site.module, nn.Linear | nn.QuantizedLinear)
            for name, array in site.module.items()
            if name in ("weight", "scales", "biases") and array is not None
        )
        assert totals[part].bits == bits
    assert totals["text_encoder"].bits_per_weight == 6.5


def test_a_full_disk_and_a_folder_in_use(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(InputError, match="GB free"):
        write(source(small_checkpoint), {"q": UNIFORM}, tmp_path / "out")
    with pytest.raises(InputError, match="exists, expected a new or an empty folder"):
        write(source(small_checkpoint), {"q": UNIFORM}, small_checkpoint)
    with pytest.raises(InputError, match="nothing is quantised"):
        write(
            source(small_checkpoint),
            {"q": QuantizedWeights([{"sites": "proj_out", "keep": True}])},
            tmp_path / "out",
        )
    assert not list(tmp_path.iterdir())
