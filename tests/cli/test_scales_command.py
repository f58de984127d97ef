"""`search strategy=scales`: from configuration to recipe, a planted failure that must be named, and mistakes."""

import json
import re
import shutil

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from precision_lab.cli import main
from precision_lab.instrument.sites import select, walk
from precision_lab.instrument.tap import ports, tapped
from precision_lab.lab.subject import components_of, generation
from tests.spread import thinned
from tests.subjects import case, source

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
QUICK = (
    *("sampler.steps=2", "image.height=32", "image.width=48", "pinned.cases=null", "drift.sites=[pipeline:euler_step]"),
    *("coverage.settings=[{},{height: 48, width: 32}]", "coverage.seeds=[0]", "holdout.settings=[{}]", "workers=1"),
)
COVERED = ("a red circle", "a blue star on a white background")
SEEN, RARE = "two green squares", "two green squares under the moon"
BLOCK, NEURON = 2, 17
PLACE = f"transformer_blocks.{BLOCK}.txt_mlp.net.0.proj"


def text_inputs(folder, prompt, seed, **settings):
    """What the text feed-forward of a block reads in all steps and branches: (rows, width)."""
    own = source(folder)
    subject, found = own.load(mx.float32), []
    components = components_of(subject, own.layout)
    site = select([f"transformer_blocks.{BLOCK}.txt_modulate2"], walk(components))
    with tapped(site, lambda call: found.extend(port.array for port in ports(call, ("out",)))):
        for _ in generation(subject, case(prompt, seed, steps=2, **settings), 2):
            pass
    return np.concatenate([np.array(array).reshape(-1, array.shape[-1]) for array in found])


@pytest.fixture(scope="module")
def planted(small_checkpoint, tmp_path_factory):
    """A checkpoint in which one neuron of one block is huge for one word, and below a quarter of float16 for others."""
    folder = tmp_path_factory.mktemp("planted") / "small"
    shutil.copytree(small_checkpoint, folder)
    seen = np.concatenate([text_inputs(folder, prompt, 0, height=32, width=48) for prompt in (*COVERED, SEEN)])
    rare = text_inputs(folder, RARE, 2, height=32, width=48)
    # of the rows of the rare prompt, the direction that stands out the most from all that were seen (whitened)
    covariance = seen.T @ seen + 0.01 * len(seen) * np.eye(seen.shape[1])
    weights = np.linalg.solve(covariance, rare.T).T
    standing_out = [(rare @ w).max() / np.abs(seen @ w).max() for w in weights]
    assert max(standing_out) > 16
    w = weights[int(np.argmax(standing_out))]
    tensors = load_file(folder / TRANSFORMER)
    tensors[f"{PLACE}.weight"][NEURON] = (w * 2.0**17 / (rare @ w).max()).astype(tensors[f"{PLACE}.weight"].dtype)
    tensors[f"{PLACE}.bias"][NEURON] = 0
    save_file(tensors, folder / TRANSFORMER)
    return folder


@pytest.fixture
def lab(tmp_path, monkeypatch, capsys):
    """Runs the command line in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(folder, *args, command=("search", "strategy=scales"), quick=QUICK):
        code = main([*command, f"model.path={folder}", *quick, *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def prompts(kind, *texts):
    return f"{kind}.prompts={json.dumps(texts)}"


def of_recipe(about, by):
    return [row for row in about["failures"] if (row["variant"], row["by"]) == ("scales", by)]


@pytest.mark.slow
def test_a_massive_activation_that_the_coverage_set_lacks_is_named(lab, planted, tmp_path):
    sets = prompts("coverage", *COVERED), prompts("holdout", SEEN, RARE)
    code, out, err = lab(planted, "only=[baseline]", *sets, "out=one")
    assert (code, err) == (0, "")
    about = json.loads((tmp_path / "one" / "scales.json").read_text())
    assert about["cases"] == {"coverage": 4, "heldout": 2}
    assert about["variants"]["scales"]["overflows"] == about["variants"]["scales"]["not_finite"] == 1
    for by in ("arithmetic", "run"):
        [row] = of_recipe(about, by)
        assert (row["site"], row["prompt_id"], row["seed"]) == (PLACE, 1, 2)
        assert row["case"].startswith(f"'{RARE}', seed 2")
    assert f"not finite in the held-out case '{RARE}', seed 2: at {PLACE}, step" in " ".join(out.split())
    page = (tmp_path / "one" / "scales.html").read_text().replace("<wbr>", "")  # where names may break
    assert PLACE in page
    assert "synthetic" in page


@pytest.mark.slow
def test_with_the_case_in_the_coverage_set_the_recipe_holds_and_runs_by_its_name(lab, planted, tmp_path):
    sets = prompts("coverage", *COVERED, RARE), prompts("holdout", SEEN, RARE)
    given = (*sets, "margin.bits=2", "only=[baseline,fp32_residual,ggml_scales]", "out=one")
    code, _, err = lab(planted, *given)
    assert (code, err) == (0, "")
    about = json.loads((tmp_path / "one" / "scales.json").read_text())
    assert of_recipe(about, "run") == of_recipe(about, "arithmetic") == []
    assert about["least_measured_bits"] > 1.5
    assert about["largest_difference_bits"] < 0.2, "float16 computes nearly the same ranges"
    assert about["techniques"]["scaled_first_linear"]["scale"].keys() == {"0", str(BLOCK), str(BLOCK + 1)}
    assert [row["margin_bits"] for row in about["margins"]] == [0, 0.5, 1, 1.5, 2, 3, 4]
    assert set(about["variants"]) == {"scales", "baseline", "fp32_residual", "ggml_scales"}
    failed = {name for name, row in about["variants"].items() if row["not_finite"]}
    assert failed == {name for name, row in about["variants"].items() if row.get("overflows")}, "as by arithmetic"
    assert "scales" not in failed
    scales = pd.read_parquet(tmp_path / "one" / "scales.parquet")
    assert set(scales["parameter"]) == {"qkv", "out", "hidden", "scale"}
    assert scales.groupby("parameter")["block"].agg(list).map(lambda blocks: blocks == list(range(4))).all()
    assert {path.name for path in (tmp_path / "one" / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("scales", "headroom") for kind in ("png", "svg")
    }

    assert "bits: 2" in (tmp_path / "one" / "config.yaml").read_text()
    text = (tmp_path / "one" / "recipe" / "technique" / "scales.yaml").read_text()
    assert f"- transformer_blocks.{BLOCK}.txt_mlp.net.0.proj" in text.replace("{img,txt}", "txt")
    run = ("--config-dir=one/recipe", "technique=[scales]", "dtype=float16", f'prompts=["{RARE}"]', "seeds=[2]")
    quick = [entry for entry in QUICK if not entry.startswith(("coverage", "holdout"))]
    code, _, err = lab(planted, *run, "only=[custom]", "out=two", "latency.max_rounds=0", command=(), quick=quick)
    assert (code, err) == (0, "")
    custom = json.loads((tmp_path / "two" / "summary.json").read_text())["variants"]["custom"]
    assert custom["num_nonfinite"] == 0
    assert "scaled_first_linear" in custom["techniques"]

    before = (tmp_path / "one" / "scales.json").read_text()
    code, _, err = lab(planted, *given)
    assert code == 2
    assert "already holds a run" in err
    assert lab(planted, *given, "resume=true")[0] == 0
    assert (tmp_path / "one" / "scales.json").read_text() == before


@pytest.mark.slow
def test_ranges_of_finished_runs(lab, planted, small_checkpoint, tmp_path):
    quick = [entry for entry in QUICK if not entry.startswith(("coverage", "holdout"))]
    covered = (prompts("x", *COVERED, RARE)[2:], "only=[baseline]", "latency.max_rounds=0")
    for name, sites in (("all", "['**','text_encoder:**','vae:**','pipeline:**']"), ("few", "[transformer_blocks.*]")):
        assert lab(planted, *covered, f"probe.range.sites={sites}", f"out={name}", command=(), quick=quick)[0] == 0
    held = (prompts("holdout", RARE), "only=[baseline]")
    code, _, err = lab(planted, *held, "coverage.runs=[all]", "out=one")
    assert (code, err) == (0, "")
    about = json.loads((tmp_path / "one" / "scales.json").read_text())
    assert of_recipe(about, "run") == []
    assert [(each["set"], each["prompts"]) for each in about["coverage"]] == [("all", [*COVERED, RARE])]
    code, _, err = lab(planted, *held, "coverage.runs=[all,./all]", "out=two")
    assert code == 2
    assert "coverage.runs names ./all twice" in err
    code, _, err = lab(planted, *held, "coverage.runs=[few]", "out=two")
    assert code == 2
    assert "few did not record transformer_blocks.0.img_modulate1, which scaled_attention.qkv divides" in err
    code, _, err = lab(small_checkpoint, *held, "coverage.runs=[all]", "out=two")
    assert code == 2
    assert "coverage.runs: all is a run of other weights" in err
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    thinned(
        [
            (["margin.bits=-1"], "margin.bits is -1, expected a number from 0 to 30"),
            (["margin.bits=much"], "margin.bits is 'much', expected a number of bits"),
            (["margin.bit=1"], "Unknown setting 'margin.bit'. Did you mean"),
            (["dtype=float32"], "dtype is float32, expected one format"),
            (["dtype=float8_e4m3fn"], "search strategy=fp8_scales chooses the kind of scale"),
            (["coverage.prompts=[]"], "coverage has no cases"),
            (["coverage.seeds=[]"], "coverage has no cases"),
            (["holdout.prompts=[]"], "holdout has no cases"),
            (["holdout.settings=[{},{}]"], r"holdout.settings\[1\] is the same as holdout.settings\[0\]"),
            (
                ["holdout.prompts=[a]", "coverage.prompts=[a]", "holdout.seeds=[0]"],
                "holdout has a case of coverage, prompt 'a'",
            ),
            (["coverage.settings=[{stepz: 3}]"], "stepz"),
            (["coverage.runs=[nowhere]"], "nowhere is not the folder of a run"),
            (["scalings=null"], "scalings"),
            (
                ["scalings.scaled_attention._target_=precision_lab.techniques.narrow.Narrow"],
                "scalings.scaled_attention",
            ),
            (["+technique@scalings=[fp32_norms]"], "Float32 has no `divisions`"),
            (["technique@wide=[fp32_norms]"], "Float32 has no `widens`"),
            (["technique=[fp32_norms]"], "scales chooses the techniques"),
            (["noise=reorderd"], "noise: unknown variant 'reorderd'. Did you mean reordered"),
            (["+variants.scales={dtype: float16}"], "variants has scales"),
            (["reference.dtype=bfloat16"], "expected no other reference"),
            (["probe=[absorption]"], "probe leaves out range"),
            (["only=[nothing]"], "only: unknown variant 'nothing'"),
            (["resume=true"], "resume=true: one holds no run"),
            (
                [
                    "~scalings.scaled_attention",
                    "~scalings.scaled_feed_forward",
                    "+scalings.scaled_first_linear.sites=[x.*]",
                ],
                "This model has none of the places that scaled_first_linear divide",
            ),
            (["++strategy=scale"], "search: unknown strategy 'scale'. Did you mean scales"),
        ],
        keep=7,
    ),
)
def test_mistakes(lab, small_checkpoint, tmp_path, overrides, message):
    code, _, err = lab(small_checkpoint, "out=one", *overrides)
    assert code == 2
    assert len(err.splitlines()) <= 2
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert list(tmp_path.iterdir()) == []
