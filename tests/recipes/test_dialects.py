"""A recipe that goes to another program and back is the same, but for what was announced."""

import fnmatch
import json
import re
from itertools import product

import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab.errors import InputError
from precision_lab.lab.recipe import nodes, stated
from precision_lab.model import mflux
from precision_lab.model.quantized import packing_of
from precision_lab.numerics.packing import MODES, Quantization
from precision_lab.recipes.dialect import UnspeakableError
from precision_lab.recipes.dialects import DIALECTS
from precision_lab.recipes.documents import Document
from precision_lab.recipes.recipe import SCALES, Float8
from precision_lab.techniques.float8_weights import Float8Weights
from precision_lab.techniques.lora import LoRA
from precision_lab.techniques.lora_fused import FusedLoRA
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.restricted import Restricted
from tests.recipes.targets import MODELS, PAIRS, built, components, target
from tests.spread import thinned
from tests.techniques.configured import named

PACKED = [
    Quantization(groups, bits, mode)
    for mode, (sizes, widths) in MODES.items()
    for groups, bits in product(sizes, widths)
]
SCALED = Quantization(16, 4, "nvfp4", tensor_scale=True)
FORMATS = [*PACKED, SCALED, *(Float8(scale, inputs) for scale in SCALES for inputs in (False, True))]
WITH_INPUTS = Float8("tensor", True)
ALWAYS = {"comfyui": Float8("tensor", False), **dict.fromkeys(("sglang", "vllm_omni", "modelopt"), WITH_INPUTS)}
"""A format that a dialect has; the others have the first of PACKED."""


def drawn(model, dialect, seed):
    """A recipe of random rules: operations, blocks, both, or single linears, in a few formats."""
    rng = np.random.default_rng(seed)
    here = target(model, dialect)
    kinds = [FORMATS[i] for i in rng.choice(len(FORMATS), rng.integers(1, 4), replace=False)]
    kinds.append(ALWAYS.get(dialect, PACKED[0]))
    recipe = {}
    operations = sorted({re.sub(r"\.\d+\.", ".*.", path) for path in here.channels})
    for _ in range(rng.integers(1, 6)):
        kind = kinds[rng.integers(len(kinds))]
        chosen = {operations[i] for i in rng.choice(len(operations), rng.integers(1, len(operations)), replace=False)}
        share = rng.choice([0.05, 0.5, 1.0])
        blocks = set(rng.choice(60, rng.integers(1, 20)).tolist()) if rng.random() < 0.5 else set(range(60))
        for path, channels in here.channels.items():
            number = re.search(r"\.(\d+)\.", path)
            inside = number is None or int(number[1]) in blocks
            fits = isinstance(kind, Float8) or channels % kind.group_size == 0
            if re.sub(r"\.\d+\.", ".*.", path) in chosen and inside and fits and rng.random() < share:
                recipe[path] = kind
    return {path: recipe[path] for path in here.channels if path in recipe}


def told(dialect, text, here):
    return DIALECTS[dialect].read(Document("theirs", text), here)


@pytest.mark.parametrize("seed", thinned(range(2), keep=1))
@pytest.mark.parametrize(("model", "dialect"), PAIRS)
def test_there_and_back(model, dialect, seed):
    here, recipe = target(model, dialect), drawn(model, dialect, hash_of(model, dialect, seed))
    if not any(expressible(dialect, kind, here, path) for path, kind in recipe.items()):
        recipe = dict.fromkeys(here.channels, ALWAYS.get(dialect, PACKED[0]))
    written = DIALECTS[dialect].write(recipe, here)
    back = told(dialect, written.text, here)
    kept = {path for loss in written.losses if loss.kept for path in loss.paths}
    changed = {path for loss in written.losses if not loss.kept for path in loss.paths}
    assert not kept & changed
    assert back.recipe == written.recipe
    for path, kind in recipe.items():
        if path in kept:
            assert path not in back.recipe
        elif path not in changed:
            assert back.recipe[path] == kind
    assert back.recipe.keys() == recipe.keys() - kept
    again = DIALECTS[dialect].write(back.recipe, here)
    assert again.text == written.text
    assert not any(loss.kept for loss in again.losses)


def hash_of(model, dialect, seed):
    return [seed, sorted(MODELS).index(model), sorted(DIALECTS).index(dialect)]


def expressible(dialect, kind, here, path):
    """Whether a linear has words of its own there; those of a fused layer may have none."""
    try:
        DIALECTS[dialect].spelled(kind, here.channels[path])
    except UnspeakableError:
        return False
    name = here.naming.theirs(path)
    joined = any(name.endswith(f".{part}") for parts in here.naming.fused.values() for part in parts)
    return not (here.naming.is_wide(path) or joined)


def test_a_recipe_of_which_nothing_can_be_said():
    here = target("micro", "comfyui")
    with pytest.raises(InputError, match="expressed for ComfyUI: ComfyUI has no 4 bits") as error:
        DIALECTS["comfyui"].write(dict.fromkeys(here.channels, PACKED[0]), here)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("model", "dialect"), thinned([pair for pair in PAIRS if pair[0] != "published"], keep=4))
def test_all_that_is_lost_is_said_in_one_line_each(model, dialect):
    here = target(model, dialect)
    recipe = {path: FORMATS[i % len(FORMATS)] for i, path in enumerate(here.channels)}
    recipe |= dict.fromkeys(list(recipe)[: len(recipe) // 2], ALWAYS.get(dialect, PACKED[1]))
    written = DIALECTS[dialect].write(recipe, here)
    lines = [loss.line(here) for loss in written.losses]
    assert len(set(lines)) == len(lines)
    assert all("\n" not in line and " linears): " in line for line in lines)
    said = {path for loss in written.losses for path in loss.paths}
    assert {path for path in recipe if written.recipe.get(path) != recipe[path]} <= said


def applied_by_them(text, here, dialect):
    """The spelling of every linear by the rule of the program itself, with Python's own matching."""
    names = {here.naming.theirs(path): path for path in here.channels}
    if dialect == "mflux":
        space = {}
        exec(text, space)
        linear = nn.Linear(2, 2)
        found = {path: space["quantization_predicate"](name, linear, 4) for name, path in names.items()}
        return {path: Quantization(p["group_size"], p["bits"], "affine") for path, p in found.items() if p}
    if dialect == "sdcpp":
        rules = [rule.rsplit("=", 1) for rule in re.search(r"'(.*)'", text)[1].split(",")]
        found = {p: next((t for e, t in rules if re.search(e, f"{n}.weight")), None) for n, p in names.items()}
        return {path: kind for path, kind in found.items() if kind}
    content = json.loads(text)
    content = content.get("quantization_config", content)
    listed = content.get("ignored_layers", content.get("ignore"))
    wide = {"sglang": str.__eq__, "vllm_omni": of_vllm, "modelopt": fnmatch.fnmatch}[dialect]
    return {
        p: True for n, p in names.items() if not here.naming.is_wide(p) and not any(wide(n, each) for each in listed)
    }


def of_vllm(name, pattern):
    return bool(re.match(pattern[3:], name)) if pattern.startswith("re:") else fnmatch.fnmatch(name, pattern)


@pytest.mark.parametrize("dialect", ["mflux", "sdcpp", "sglang", "vllm_omni", "modelopt"])
@pytest.mark.parametrize("seed", thinned(range(3), keep=1))
def test_the_program_itself_would_read_the_same(dialect, seed):
    here = target("micro", dialect)
    kind = Quantization(32, 4, "affine") if dialect in ("mflux", "sdcpp") else Float8("tensor", True)
    paths = drawn("micro", dialect, [9, seed])
    written = DIALECTS[dialect].write(dict.fromkeys(paths, kind), here)
    theirs = applied_by_them(written.text, here, dialect)
    assert theirs.keys() == written.recipe.keys()
    if dialect == "mflux":
        assert theirs == written.recipe


def test_what_a_technique_leaves_at_a_site_decides():
    """A search may restrict a technique to some sites; one that computes differently is said to be left out."""
    whole, some = named("affine4")["affine4"], "transformer_blocks.{0,3}.attn.to_q"
    recipe, losses = stated(components("micro"), {"found": Restricted(whole, [some]), **named("fp32_norms")})
    assert recipe == {f"transformer_blocks.{block}.attn.to_q": PACKED[0] for block in (0, 3)}
    assert [loss.reason for loss in losses.all()] == [
        "left out: technique fp32_norms, Float32: no program takes it from a recipe"
    ]


@pytest.mark.parametrize(
    ("technique", "said"),
    [
        ("svdquant_inputs", "svdquant with inputs in int4"),
        ("only_inputs_mxfp8", "wide with inputs in mxfp8"),
        ("int8", "int8"),
    ],
)
def test_a_format_that_no_recipe_has_is_named(technique, said):
    recipe, losses = stated(components("micro"), named(technique))
    assert not recipe
    assert [loss.reason for loss in losses.all()] == [
        f"left out: technique {technique}, CodedWeights: a recipe cannot state {said}"
    ]


def test_an_adapter_is_left_out_and_the_formats_beside_it_stay(tmp_path):
    path = "transformer_blocks.0.attn.to_q"
    rows = {"lora_A": np.ones((2, 64), np.float32), "lora_B": np.ones((64, 2), np.float32)}
    save_file({f"{path}.{part}.weight": factor for part, factor in rows.items()}, tmp_path / "lora.safetensors")
    adapters = {"live": LoRA(str(tmp_path)), "fused": FusedLoRA(str(tmp_path))}
    expected, _ = stated(components("micro"), named("affine4"))
    recipe, losses = stated(components("micro"), adapters | named("affine4"))
    assert recipe == expected
    assert [loss.reason.partition(",")[0] for loss in losses.all()] == [
        "left out: technique live",
        "left out: technique fused",
    ]


def test_mlx_lm_itself_quantises_what_the_recipe_says():
    mlx_lm = pytest.importorskip("mlx_lm.utils")
    here, recipe = target("micro", "mlx_lm"), drawn("micro", "mlx_lm", 3)
    recipe = {path: kind for path, kind in recipe.items() if isinstance(kind, Quantization)}
    written = DIALECTS["mlx_lm"].write(recipe, here)
    entries = json.loads(written.text)["quantization"]
    model = built("micro")["transformer"]
    common = {key: entries[key] for key in ("group_size", "bits", "mode")}
    mlx_lm.nn.quantize(
        model, **common, class_predicate=lambda path, m: hasattr(m, "to_quantized") and entries.get(path, True)
    )
    found = {path: packing_of(m) for path, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)}
    assert found == recipe


@pytest.mark.parametrize("model", ["micro", "micro_21"])
def test_a_saved_model_of_mflux_says_what_it_packs(model, tmp_path):
    """Of a header alone, as mflux writes it: shapes, and the level in the metadata."""
    here = target(model, "mflux")
    rng = np.random.default_rng(4)
    recipe = {
        path: Quantization(groups, int(rng.choice([2, 3, 4, 5, 6, 8])), "affine")
        for path, channels in here.channels.items()
        if channels % (groups := int(rng.choice([32, 64]))) == 0 and rng.random() < 0.7
    }
    header = {"__metadata__": {"mflux_version": "0.24.0", "quantization_level": "4"}}
    for path, channels in here.channels.items():
        kind, name = recipe.get(path), here.naming.theirs(path)
        shapes = {"weight": (8, channels)} if kind is None else packed(kind, channels)
        header |= {f"{name}.{part}": entry(shape) for part, shape in shapes.items()}
    write_header(tmp_path / "0.safetensors", header)
    assert DIALECTS["mflux"].read(Document.read(tmp_path), here).recipe == recipe
    assert DIALECTS["mflux"].read(Document.read(tmp_path / "0.safetensors"), here).recipe == recipe


def packed(kind, channels):
    return {"weight": (8, channels * kind.bits // 32), "scales": (8, channels // kind.group_size)}


def entry(shape, size=0):
    return {"dtype": "U32", "shape": list(shape), "data_offsets": [0, size]}


def write_header(path, header, data=b""):
    content = json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)


def test_weights_of_comfyui_are_read_from_their_metadata_and_from_their_notes(tmp_path):
    here = target("published", "comfyui")
    layers = {
        "model.diffusion_model.transformer_blocks.0.attn.to_q": {"format": "nvfp4"},
        "model.diffusion_model.img_in": {"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
        "model.diffusion_model.transformer_blocks.1.attn.to_q": {"format": "int8_tensorwise", "convrot": True},
    }
    expected = {"img_in": Float8("tensor", False), "transformer_blocks.0.attn.to_q": SCALED}
    write_header(
        tmp_path / "a.safetensors", {"__metadata__": {"_quantization_metadata": json.dumps({"layers": layers})}}
    )
    notes = {f"{name}.comfy_quant": json.dumps(value).encode() for name, value in layers.items()}
    header, data = {}, b""
    for name, note in notes.items():
        header[name] = {"dtype": "U8", "shape": [len(note)], "data_offsets": [len(data), len(data) + len(note)]}
        data += note
    write_header(tmp_path / "b.safetensors", header, data)
    for name in ("a", "b"):
        read = DIALECTS["comfyui"].read(Document.read(tmp_path / f"{name}.safetensors"), here)
        assert read.recipe == expected
        reasons = {loss.reason: loss.kept for loss in read.losses}
        assert reasons.pop("the lab has no format 'int8_tensorwise' of ComfyUI")
        assert list(reasons.values()) == [False]  # inputs in nvfp4


def test_names_of_mflux_lead_back_to_the_published_ones():
    here = target("published", "mflux")
    names = {f"{here.naming.theirs(path)}.weight": path for path in here.channels}
    assert len(names) == len(here.channels)
    for name, path in names.items():
        assert list(mflux.published_names({name: 0})) == [f"{path}.weight"]


def test_documented_examples_of_the_programs():
    published = target("published", "vllm_omni")
    read = told("vllm_omni", '{"method": "fp8", "ignored_layers": ["img_mlp"]}', published)
    assert {path.split(".")[2] for path in read.recipe} == {"attn", "txt_mlp"}
    assert len(read.recipe) == 60 * 10
    text = '--tensor-type-rules "^vae\\.=f16,model\\.=q8_0"'
    read = told("sdcpp", text, target("published", "sdcpp"))
    assert set(read.recipe.values()) == {Quantization(32, 8, "affine")}
    assert len(read.recipe) == 846 - 2  # but for img_in and txt_in
    read = told(
        "modelopt",
        '{"quantization": {"quant_algo": "FP8", "exclude_modules": ["*_mod.1", "time_text_embed"]}}',
        target("published", "modelopt"),
    )
    assert len(read.recipe) == 846 - 120 - 2


@pytest.mark.parametrize(
    "name", thinned(["affine4_img_mod8", "affine4_boundary16", "fp8_skip_sensitive", "nvfp4"], keep=2)
)
def test_a_shipped_recipe_is_the_same_from_its_own_yaml(name):
    recipe, losses = stated(components("micro"), named(name))
    assert not losses.all()
    made = nodes(recipe, target("micro", "mlx_lm"), "again")
    kinds = {kind.__name__: kind for kind in (QuantizedWeights, Float8Weights)}
    techniques = {
        key: kinds[node["_target_"].rpartition(".")[2]](**{k: v for k, v in node.items() if k != "_target_"})
        for key, node in made.items()
    }
    assert stated(components("micro"), techniques).recipe == recipe
