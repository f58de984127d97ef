"""`recipe`: what it prints, what it says of what is lost, and its answers to files of others."""

import copy
import json
import os

import pandas as pd
import pytest
from hydra import compose

from precision_lab.cli import main
from precision_lab.cli.ending import guarded
from precision_lab.cli.recipe import task
from precision_lab.record.run import Run
from tests.composing import configurations
from tests.spread import thinned
from tests.undrawn import undrawn

Q8 = "q8_0, groups of 32 with a scale alone"
QUICK = ("sampler.steps=1", "image.height=32", "image.width=32", "prompts=[a]", "latency.max_rounds=0", "probe=[]")


@pytest.fixture
def recipe(small_checkpoint, capsys):
    def call(*overrides, model=small_checkpoint):
        code = main(["recipe", f"model.path={model}", *overrides])
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


@pytest.mark.parametrize(
    ("technique", "dialect", "suffix"),
    [
        pytest.param("affine4_img_mod8", "mflux", "py", marks=pytest.mark.slow),
        pytest.param("affine4_boundary16", "mlx_lm", "json", marks=pytest.mark.slow),
        ("fp8_skip_sensitive", "sglang", "json"),
    ],
)
def test_the_yaml_alone_makes_the_same_result(recipe, small_checkpoint, tmp_path, capsys, technique, dialect, suffix):
    """There, back, and in a folder with nothing but the yaml: bit for bit the same latents."""
    code, text, err = recipe(f"technique={technique}", f"to={dialect}")
    assert (code, err) == (0, "")
    (tmp_path / f"theirs.{suffix}").write_text(text)
    code, yaml, err = recipe(f"from={dialect}", f"file={tmp_path}/theirs.{suffix}", "name=theirs")
    assert (code, err) == (0, "")
    (tmp_path / "elsewhere" / "technique").mkdir(parents=True)
    (tmp_path / "elsewhere" / "technique" / "theirs.yaml").write_text(yaml)
    frames = []
    for name, options in ((technique, ()), ("theirs", ("--config-dir", f"{tmp_path}/elsewhere"))):
        run = (f"technique=[{name}]", f"model.path={small_checkpoint}", f"out={tmp_path / name}", *QUICK)
        with undrawn():
            assert main(["run", *options, *run, "only=[custom]"]) == 0
        frames.append(Run.open(tmp_path / name).drift)
    capsys.readouterr()
    assert (frames[0]["rel_l2"] > 0).any()
    pd.testing.assert_frame_equal(*frames)


def test_a_recipe_of_ours_in_a_file(recipe, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "mine:\n  _target_: precision_lab.techniques.quantized_weights.QuantizedWeights\n"
        '  rules: [{sites: "${sites.image_modulation_linears}", bits: 8}, {sites: img_in, bits: 4}]\n'
    )
    code, out, err = recipe(f"file={file}", "to=sdcpp")
    assert code == 0
    assert (
        out
        == r"--tensor-type-rules '^model\.diffusion_model\.transformer_blocks\.[^.]+\.img_mod\.1\.weight$=q8_0'" + "\n"
    )
    assert err.splitlines() == [
        "kept as stored: img_in (1 linears): stable-diffusion.cpp never quantises this layer",
        f"changed: transformer_blocks.*.img_mod.1 (4 linears): 8 bits in groups of 64, affine becomes {Q8}",
    ]


def test_from_one_program_to_another(recipe, tmp_path):
    (tmp_path / "a.json").write_text(recipe("technique=affine4", "to=mlx_lm")[1])
    code, out, err = recipe("from=mlx_lm", f"file={tmp_path}/a.json", "to=mflux")
    assert (code, err) == (0, "")
    assert out == recipe("technique=affine4", "to=mflux")[1]


def test_what_no_program_takes_is_said(recipe):
    code, out, err = recipe("technique=[affine4,fp32_norms]", "to=mflux")
    assert code == 0
    assert "RULES" in out
    assert "left out: technique fp32_norms" in err


OURS = "precision_lab.techniques.quantized_weights.QuantizedWeights"


@pytest.mark.parametrize(
    ("arguments", "said"),
    thinned(
        [
            ((), "recipe needs to=DIALECT or from=DIALECT, one of mlx_lm"),
            (("technique=affine4",), "recipe needs to=DIALECT"),
            (("to=mflux",), "either technique=[NAME] or file=RECIPE.yaml"),
            (("to=mflx", "technique=affine4"), "to=mflx: unknown dialect, expected one of mlx_lm, mflux"),
            (("from=mflux",), "from=mflux reads file=FILE"),
            (("from=mflux", "file=nowhere.py"), "nowhere.py is missing"),
            (("from=mflux", "file=x", "name=a-b"), "name is 'a-b', expected letters"),
            (
                ("technique=fp32_norms", "to=mflux"),
                "nothing of the recipe can be expressed for mflux: left out: technique",
            ),
            (
                ("technique=affine4", "to=comfyui"),
                "can be expressed for ComfyUI: ComfyUI has no 4 bits in groups of 64",
            ),
            (
                ("technique=affine4", "to=sglang", "model=micro_21", "model.path=package://micro_21"),
                "can be expressed for SGLang",
            ),
            (
                ("technique=fp8", "to=vllm_omni", "model=micro_21", "model.path=package://micro_21"),
                "does not say how vLLM-Omni names its modules",
            ),
            (("technique=affine4", "to=mflux", "file=a.yaml"), "either technique=[NAME] or file=RECIPE.yaml"),
        ],
        keep=6,
    ),
)
def test_settings_that_say_no_recipe(recipe, arguments, said):
    code, out, err = recipe(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) <= 2


FILES = [
    ("mlx_lm", "{", "is not JSON"),
    ("mlx_lm", "[" * 100_000, "nested too deeply"),
    ("mlx_lm", "[]", "expected an object"),
    ("mlx_lm", "{}", "has no group_size"),
    ("mlx_lm", '{"group_size": 64, "bits": 4, "bits": 8}', "'bits' is there twice"),
    ("mlx_lm", '{"group_size": 64, "bits": 1e400}', "bits is inf"),
    ("mlx_lm", '{"group_size": 64, "bits": 7}', "bits is 7, affine has"),
    ("mlx_lm", '{"group_size": 64, "bits": 4, "transformer_blocks.0.atn.to_q": false}', "Did you mean"),
    ("mlx_lm", '{"group_size": 64, "bits": 4, "img_in": {"bit": 4}}', "unknown entry 'bit'"),
    ("mlx_lm", '{"group_size": 64, "bits": 4, "img_in": 3}', "expected an object"),
    ("mflux", "RULES = open('x')", "no table that can be read"),
    ("mflux", "RULES = [('a', {'bits': 4})", "no table that can be read"),
    ("mflux", "RULES = 3", "no such table"),
    ("mflux", "import os", "no such table"),
    ("mflux", "RULES = " + "(" * 5000 + ")" * 5000, "no table that can be read"),
    ("mflux", "RULES = [('(a', {'bits': 4})]", "cannot read the expression"),
    ("mflux", "RULES = [('img_in', {'bits': 9})]", "bits is 9"),
    ("mflux", "RULES = [('nothing', {'bits': 4})]", "nothing in it can be judged"),
    ("comfyui", '{"layers": {"img_out": {"format": "nvfp4"}}}', "has no linear 'img_out'"),
    ("comfyui", '{"layers": {"img_in": "nvfp4"}}', "expected an object"),
    ("comfyui", '{"layers": {"img_in": {}}}', "expected an object like"),
    ("comfyui", '{"layers": {"img_in": {"format": "int4"}}}', "the lab has no format 'int4'"),
    ("comfyui", "{}", "no quantised layers"),
    ("sdcpp", "", "no rules"),
    ("sdcpp", "img_mod", "is no rule"),
    ("sdcpp", "img_mod=q4_7", "unknown type. Did you mean"),
    ("sdcpp", "img_mod(=q8_0", "cannot read the expression"),
    ("sdcpp", "img_mod=f16", "it keeps every linear as stored"),
    ("sglang", '{"quant_method": "awq"}', "quant_method is 'awq'"),
    ("sglang", '{"quant_method": "fp8", "ignored_layers": [1]}', "expected a list of names"),
    ("vllm_omni", '{"method": "fp8", "ignored_layers": ["re:("]}', "cannot read the expression"),
    ("vllm_omni", '{"method": "fp8", "ignored_layers": ["re:.*to_q"]}', "has some but not all of"),
    ("vllm_omni", '{"method": "fp8", "ignored_layers": ["*"]}', "it keeps every linear as stored"),
    ("modelopt", '{"quant_algo": "W4A8"}', "quant_algo is 'W4A8'"),
    ("modelopt", '{"quantization": 3}', "expected an object"),
    (None, "- 3", "expected a mapping from the name"),
    (None, "a: {_target_: os.system, command: ls}", "expected a class below precision_lab.techniques"),
    (
        None,
        f"a: {{_target_: {OURS}, rules: [{{_target_: os.getcwd}}]}}",
        "expected a class below precision_lab.techniques",
    ),
    (None, f"defaults: [b]\na: {{_target_: {OURS}, rules: []}}", "it has defaults"),
    (None, f"a: {{_target_: {OURS}, rules: [{{sites: '${{a.b}}'}}]}}", "a.b"),
    (None, f"a: {{_target_: {OURS}, rules: [{{sites: nothing, bits: 4}}]}}", "matches nothing"),
    (None, f"a: {{_target_: {OURS}, rules: [{{sites: img_in, bit: 4}}]}}", "unknown entry 'bit'"),
    (None, "a: !!python/object/apply:os.getcwd []", "a.yaml"),
    (
        None,
        "a: &a [x]\n"
        + "".join(f"b{i}: &b{i} [{', '.join(['*' + ('a' if i == 0 else f'b{i - 1}')] * 9)}]\n" for i in range(9)),
        "aliases",
    ),
]


@pytest.fixture(scope="module")
def composed(small_checkpoint):
    """The settings of the command, composed once: that takes ten times as long as to refuse a file."""
    with configurations():
        return compose("recipe", overrides=[f"model.path={small_checkpoint}"])


@pytest.fixture
def reading(composed, capsys):
    """Runs the command on settings whose configuration is composed already."""

    def call(**settings):
        config = copy.deepcopy(composed)
        config.update(settings)
        code = guarded(lambda: task(config, ["recipe", *(f"{key}={value}" for key, value in settings.items())]))
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


@pytest.mark.parametrize(("dialect", "text", "said"), thinned(FILES, keep=16))
def test_files_of_others(reading, tmp_path, dialect, text, said):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    code, out, err = reading(**({"from": dialect} if dialect else {"to": "mlx_lm"}), file=str(file))
    assert (code, out) == (2, ""), err
    assert said in err
    assert len(err.splitlines()) <= 2


def test_files_that_are_no_texts(reading, tmp_path):
    (tmp_path / "large.json").write_bytes(b" " * ((1 << 24) + 1))
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    (tmp_path / "short.safetensors").write_bytes(b"\x05")
    (tmp_path / "none.safetensors").write_bytes(_file({"img_in.weight": [1]}))
    (tmp_path / "others.safetensors").write_bytes(_file({}))
    note = {"dtype": "U8", "shape": [9000], "data_offsets": [0, 9000]}
    (tmp_path / "note.safetensors").write_bytes(_file({"img_in.comfy_quant": note}))
    (tmp_path / "cut.safetensors").write_bytes(_file({"img_in.comfy_quant": note | {"data_offsets": [0, 30]}}))
    wrong = {
        name: {"dtype": "U32", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in (("img_in.weight", [4, 3]), ("img_in.scales", [4, 1]))
    }
    (tmp_path / "wrong.safetensors").write_bytes(_file(wrong | {"__metadata__": {"quantization_level": "4"}}))
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    for dialect, name, said in (
        ("mlx_lm", "large.json", "expected at most 16777216"),
        ("mlx_lm", "binary.json", "is not UTF-8 text"),
        ("mlx_lm", "pipe.json", "is not a file"),
        ("mlx_lm", "others.safetensors", "weights, expected a text"),
        ("mflux", "short.safetensors", "not a safetensors file"),
        ("mflux", "none.safetensors", "is malformed"),
        ("mflux", "others.safetensors", "no model that mflux saved"),
        ("mflux", "wrong.safetensors", "pack no 64 input channels"),
        ("mflux", "empty", "no safetensors files in this folder"),
        ("comfyui", "note.safetensors", "has 9000 bytes, expected 1 to 4096"),
        ("comfyui", "cut.safetensors", "truncated"),
        ("comfyui", "others.safetensors", "no quantised layers"),
    ):
        code, out, err = reading(**{"from": dialect, "file": str(tmp_path / name)})
        assert (code, out) == (2, ""), name
        assert said in err, (name, err)
        assert len(err.splitlines()) == 1


def _file(header):
    content = json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content
