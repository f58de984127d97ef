"""Language models of mlx-lm: the subject computes the logits of mlx-lm, and drift is measured on the logits."""

import json
import shutil
import textwrap
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from scipy import stats

from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.instrument.arrays import to_numpy
from precision_lab.lab.subject import Case, generation
from precision_lab.model.mlx_lm.subject import LanguageModel
from precision_lab.numerics.metrics import kl_divergence
from precision_lab.record.run import Run
from tests.spread import thinned
from tests.undrawn import undrawn

pytest.importorskip("mlx_lm")
TOKENIZER = Path(__file__).parents[2] / "precision_lab" / "checkpoints" / "micro" / "tokenizer"
TEXT = "two red circles on a blue background"
QUICK = (
    *("latency.min_rounds=0", "latency.max_rounds=0", "pinned.cases=null"),
    *("sampler.steps=4", f"prompts=[{TEXT}]", "workers=1"),
)
"""One case and no times. A second worker, which more cases would start, takes seconds to import the packages."""
BUSY = ("gate.latency_margin=1000", "gate.latency_ratio_margin=1000")
"""Margins for times, which are not the subject of a test on a busy machine."""


def write(folder, tied=True, quantised=False):
    """A random Qwen3 with three layers, in the layout in which mlx-lm saves models."""
    from mlx_lm.models.qwen3 import Model, ModelArgs
    from transformers import AutoTokenizer

    shutil.copytree(TOKENIZER, folder)
    config = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "vocab_size": len(AutoTokenizer.from_pretrained(folder)),
        "max_position_embeddings": 512,
        "rope_theta": 1e4,
        "tie_word_embeddings": tied,
        "_weights": "synthetic",
    }
    mx.random.seed(5)
    model = Model(ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    if quantised:
        nn.quantize(model, group_size=32, bits=4)
        config["quantization"] = {"group_size": 32, "bits": 4}
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=["tied", "untied", "quantised"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("lm") / request.param
    return write(place, tied=request.param != "untied", quantised=request.param == "quantised")


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_the_logits_are_those_of_mlx_lm_on_the_whole_text(folder, steps):
    from mlx_lm.utils import load_model

    source = LanguageModel("tiny", str(folder))
    case = Case(0, TEXT, 0, {"steps": steps})
    tokens = source.tokens(TEXT)
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    expected = model(mx.array([tokens]))[0]
    count = source.steps(case)
    assert count == min(steps, len(tokens))
    results = [step.result[0, 0] for _, step in generation(source.load(mx.float32), case, count)]
    actual = mx.stack(results)
    assert actual.dtype == mx.float32
    np.testing.assert_allclose(np.array(actual), np.array(expected[len(tokens) - count :]), rtol=1e-4, atol=1e-4)


def test_a_step_does_not_change_its_input_state(folder):
    source = LanguageModel("tiny", str(folder))
    subject, case = source.load(mx.bfloat16), Case(0, TEXT, 0, {"steps": 3})
    state = subject.start(case)
    first = subject.step(state, 0)
    mx.eval(first.state)
    second = subject.step(first.state, 1)
    mx.eval(second.state)
    again = subject.step(first.state, 1)
    assert mx.array_equal(second.result, again.result)
    assert mx.array_equal(subject.step(state, 0).result, first.result)


def test_a_run_with_drift_local_error_and_kl(folder, tmp_path):
    settings = ("model=mlx_lm", f"model.path={folder}", "drift.teacher.mode=sampled", f"out={tmp_path / 'run'}")
    with undrawn():
        assert main([*settings, *QUICK]) == 0
    run = Run.open(tmp_path / "run")
    logits = run.drift.query("site == 'logits' and variant == 'baseline'")
    assert set(logits["mode"]) == {"free", "teacher"}
    assert (logits["kl"] >= 0).all()
    assert 0 < logits["kl"].mean() < 0.1
    assert run.drift.query("site != 'logits'")["kl"].isna().all()
    assert set(run.activations["block"].dropna()) == {0, 1, 2}
    assert run.layout.streams.keys() == {"residual"}
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["weights"] == "synthetic"
    assert summary["variants"]["baseline"]["metrics"]["kl"] > 0
    assert summary["variants"]["baseline"]["amax_final"] > 0


def test_techniques_that_name_groups_of_sites(tmp_path, tmp_path_factory):
    expected = {"ffn_scaling": 3, "fp8_channel": 21, "fp32_norms": 13, "affine4": 21, "reordered_sums": 3}
    folder = write(tmp_path_factory.mktemp("lm") / "tiny")
    variants = [f"+technique@variants.with_{name}.technique=[{name}]" for name in expected]
    with undrawn():
        assert main(["model=mlx_lm", f"model.path={folder}", *variants, *QUICK, f"out={tmp_path / 'run'}"]) == 0
    run = Run.open(tmp_path / "run")
    matched = {name: run.manifest.sites[f"with_{name}"][name].matched for name in expected}
    assert matched == expected


def test_local_error_of_a_layer_that_writes_into_its_cache_is_rejected(folder, tmp_path, capsys):
    overrides = ("drift.teacher.mode=full", "drift.teacher.sites=['**.layers.*']", f"out={tmp_path / 'run'}")
    assert main(["model=mlx_lm", f"model.path={folder}", *QUICK, *overrides]) == 2
    assert "is called with a KVCache, which it may change" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_kl_is_that_of_scipy():
    rng = np.random.default_rng(3)
    x, ref = rng.normal(0, 4, (2, 5, 17)), rng.normal(0, 4, (2, 5, 17))

    def softmax(logits):
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    expected = stats.entropy(softmax(ref), softmax(x), axis=-1).mean()
    assert kl_divergence(x, ref) == pytest.approx(expected, rel=1e-12)
    assert kl_divergence(ref + 3, ref) == pytest.approx(0, abs=1e-14)
    assert np.isnan(kl_divergence(np.full_like(ref, np.nan), ref))


def test_a_path_without_a_language_model(tmp_path):
    with pytest.raises(InputError, match="neither a folder nor a Hub id"):
        LanguageModel("x", "/nowhere/at/all").checkpoint  # noqa: B018
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(InputError, match="mlx-lm cannot load it"):
        LanguageModel("x", str(tmp_path)).load(mx.float32)
    for key, value in (("num_hidden_layers", 10**12), ("n_layers", -1), ("n_layer", 10**400)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "text_config": {key: value}}))
        with pytest.raises(InputError, match=f"config.json: {key} is .*, expected 1 to 1024"):
            LanguageModel("x", str(tmp_path)).load(mx.float32)
    with pytest.raises(InputError, match="model=mlx_lm has no path"):
        LanguageModel("x")


def test_the_fingerprint_covers_the_files_that_mlx_lm_reads(folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    plain = LanguageModel("x", str(copied)).checkpoint.fingerprint
    mx.save_safetensors(str(copied / "consolidated.safetensors"), {"other": mx.zeros(3)})
    assert LanguageModel("x", str(copied)).checkpoint.fingerprint == plain
    tensors = mx.load(str(copied / "model.safetensors"))
    names = sorted(tensors)
    for number, part in enumerate((names[:5], names[5:])):
        mx.save_safetensors(str(copied / f"model-{number}.safetensors"), {name: tensors[name] for name in part})
    (copied / "model.safetensors").unlink()
    source = LanguageModel("x", str(copied))
    assert source.checkpoint.fingerprint != plain
    assert source.load(mx.float32).components["model"]


def test_a_damaged_file(folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    whole = (copied / "model.safetensors").read_bytes()
    for damaged in (whole[:-1], whole[:50], b""):
        (copied / "model.safetensors").write_bytes(damaged)
        with pytest.raises(InputError, match="mlx-lm cannot load it"):
            LanguageModel("x", str(copied)).load(mx.float32)


def test_dtypes(folder):
    source = LanguageModel("tiny", str(folder))
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        _, step = next(generation(source.load(dtype), Case(0, TEXT, 0, {"steps": 2}), 2))
        assert step.result.dtype == dtype
        assert np.isfinite(to_numpy(step.result).astype(np.float32)).all()


@pytest.fixture
def conf(tmp_path):
    """Somebody's own configurations: a technique, and an experiment that makes claims about it."""
    for group, name, text in (
        (
            "technique",
            "lm_4bit",
            """
            lm_4bit:
              _target_: precision_lab.techniques.quantized_weights.QuantizedWeights
              rules: [{sites: "**.layers.*.**.*_proj", bits: 4, group_size: 32}]
            """,
        ),
        (
            "exp",
            "four_bits",
            """
            # @package _global_
            defaults: ["/technique@variants.four_bits.technique: [lm_4bit]"]
            experiment: four_bits
            variants: {baseline: {expect: finite}}
            claims:
              kl: {text: 4 bits diverge more, source: a test, metric: kl, relation: larger,
                   subject: four_bits, against: baseline}
              drift: {text: 4 bits drift more, source: a test, metric: drift, relation: larger,
                      subject: four_bits, against: baseline}
              range: {text: layers stay small, source: a test, metric: amax, relation: smaller,
                      subject: baseline, bound: 1000, sites: ["**.layers.*"]}
            """.replace('["/technique@', '[{"/technique@').replace(': [lm_4bit]"]', '": [lm_4bit]}]'),
        ),
    ):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(textwrap.dedent(text).lstrip())
    return tmp_path / "conf"


@pytest.mark.slow
def test_techniques_probes_claims_gate_and_report(tmp_path_factory, tmp_path, conf, capsys):
    folder = write(tmp_path_factory.mktemp("lm") / "plain")
    model = ("--config-dir", str(conf), "model=mlx_lm", f"model.path={folder}", "+exp=four_bits")
    probes = ("probe=[range,exponents,what_if]", "probe.what_if.sites=['**.layers.*']")
    steps = ("sampler.steps=4", "latency.min_rounds=2", "latency.max_rounds=2", *BUSY)
    gate = f"gate.baseline={tmp_path / 'baseline.json'}"
    assert main(["gate", *model, *probes, *steps, gate, "gate.update=true", f"out={tmp_path / 'learned'}"]) == 0
    assert main(["gate", *model, *probes, *steps, gate, f"out={tmp_path / 'judged'}"]) == 0
    run = Run.open(tmp_path / "judged")
    assert run.manifest.sites["four_bits"]["lm_4bit"].matched == 3 * 7
    assert run.manifest.variants["four_bits"].linear_weights["model"].bits_per_weight < 8
    assert {column.name for column in run.manifest.columns["activations"]} >= {"amax", "sqnr_db_mxfp4"}
    assert len(run.tables["exponents"])
    assert {claim.id: claim.verdict for claim in run.summary.claims} == dict.fromkeys(
        ("kl", "drift", "range"), "supported"
    )
    page = (run.path / "report.html").read_text()
    assert "KL divergence of the logits" in page
    assert "residual stream" in page.lower()

    weights = dict(mx.load(str(folder / "model.safetensors")))
    weights["model.layers.1.mlp.down_proj.weight"] = 1.02 * weights["model.layers.1.mlp.down_proj.weight"]
    changed = shutil.copytree(folder, tmp_path / "changed")
    mx.save_safetensors(str(changed / "model.safetensors"), weights)
    capsys.readouterr()
    code = main(
        ["gate", *model[:3], f"model.path={changed}", *model[4:], *probes, *steps, gate, f"out={tmp_path / 'x'}"]
    )
    assert code == 2
    assert "Another checkpoint" in capsys.readouterr().err


def test_the_gate_names_a_changed_module(tmp_path_factory, tmp_path, monkeypatch):
    folder = write(tmp_path_factory.mktemp("lm") / "plain")
    # one worker: another process would not have the change below
    model = (
        "model=mlx_lm",
        f"model.path={folder}",
        "+exp=plain",
        "sampler.steps=4",
        "latency.max_rounds=2",
        "workers=1",
    )
    command = ["gate", *model, *BUSY, "latency.min_rounds=2", f"gate.baseline={tmp_path / 'baseline.json'}"]
    command += [f"prompts=[{TEXT}]", "gate.learn.prompts=[a small star]", "gate.learn.seeds=[1]"]
    with undrawn():
        assert main([*command, "gate.update=true", f"out={tmp_path / 'learned'}"]) == 0
    original = LanguageModel.load

    def load(self, dtype):
        is_new = dtype not in self._loaded
        subject = original(self, dtype)
        if is_new:
            subject.model.layers[1].mlp.down_proj.weight = 1.02 * subject.model.layers[1].mlp.down_proj.weight
        return subject

    monkeypatch.setattr(LanguageModel, "load", load)
    with undrawn():
        assert main([*command, f"out={tmp_path / 'changed'}"]) == 1
    record = json.loads((tmp_path / "changed" / "gate.json").read_text())
    assert record["violations"][0]["address"] == "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("override", "setting"),
    thinned(
        [("pinned.record=true pinned.sites=['**.rope']", "pinned.sites"), ("drift.sites=['**.rope']", "drift.sites")],
        keep=1,
    ),
)
def test_a_module_that_is_called_twice_in_a_step_is_named(folder, tmp_path, override, setting, capsys):
    command = [
        "model=mlx_lm",
        f"model.path={folder}",
        "sampler.steps=2",
        "latency.min_rounds=0",
        "latency.max_rounds=0",
    ]
    assert main([*command, *override.split(), f"out={tmp_path / 'run'}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(setting)
    assert "self_attn.rope" in message
    assert "is called twice in one step" in message
