"""Another reference than the plain fp32 model, and stored results: drift against it equals a computation of its own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.summary import summarize
from precision_lab.cli import main
from precision_lab.lab.measures import LatencySpec, TeacherSpec
from precision_lab.lab.run import run
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.record import results
from precision_lab.record.manifest import Manifest, Reference
from tests.subjects import settings, source
from tests.techniques.configured import SITES, named
from tests.undrawn import unrendered

RESULT = "pipeline:euler_step"
BITS = named("affine8")


class Quiet:
    def start(self, total):
        pass

    def advance(self, amount, label):
        pass

    def note(self, text):
        pass


def measured(checkpoint, out, reference, variants, **changes):
    spec = RunSpec(
        experiment="reference",
        source=source(checkpoint),
        settings=settings(steps=2, guidance_scale=3.0, height=32, width=48),
        prompts=["a red circle"],
        seeds=[3],
        variants=variants,
        baseline=variants[0].name,
        probes={},
        drift_sites=(RESULT,),
        latency=LatencySpec(max_rounds=0),
        out=out,
        reference=reference,
        **changes,
    )
    run(spec, Quiet())
    return summarize(out), pd.read_parquet(out / "drift.parquet")


@pytest.fixture(scope="module")
def quantised(small_checkpoint, tmp_path_factory):
    """A run whose reference is an 8-bit model in bfloat16, and its drift."""
    out = tmp_path_factory.mktemp("reference") / "run"
    variants = [Variant("same", "bfloat16", BITS), Variant("plain", "bfloat16"), Variant("fp32", "float32")]
    reference = Variant("reference", "bfloat16", BITS)
    summary, drift = measured(
        small_checkpoint, out, reference, variants, teacher=TeacherSpec((SITES["feed_forwards"],), "sampled")
    )
    return out, summary, drift


def result(out, variant):
    found = results.read(results.path_of(out, variant, 0, 3))
    assert found is not None
    return found.astype(np.float64)


def test_a_variant_equal_to_the_reference_has_no_error(quantised):
    out, summary, drift = quantised
    assert summary.variants["same"].latent_rel_l2.value == 0.0
    assert summary.variants["same"].psnr_db.reason == "identical"
    assert (drift[drift["variant"] == "same"]["rel_l2"] == 0.0).all(), "local error too"
    assert {"free", "teacher"} == set(drift[drift["variant"] == "same"]["mode"])
    np.testing.assert_array_equal(result(out, "same"), result(out, "reference"))


@pytest.mark.parametrize("variant", ["plain", "fp32"])
def test_drift_is_that_of_the_stored_results(quantised, variant):
    out, summary, drift = quantised
    expected, found = result(out, "reference"), result(out, variant)
    error = np.sqrt(((found - expected) ** 2).sum() / (expected**2).sum())
    assert error > 1e-3
    rows = drift[(drift["variant"] == variant) & (drift["mode"] == "free") & (drift["site"] == "euler_step")]
    assert rows[rows["step"] == 1]["rel_l2"].item() == pytest.approx(error, rel=1e-9)
    assert summary.variants[variant].latent_rel_l2.value == pytest.approx(error, rel=1e-9)


def test_the_manifest_says_what_the_reference_is(quantised, small_checkpoint, tmp_path):
    manifest = Manifest.read(quantised[0])
    assert manifest.reference == Reference("reference", "bfloat16", ["affine8"])
    assert manifest.reference.words == "bfloat16 with affine8"
    assert not manifest.reference.is_plain
    assert manifest.variants["reference"].techniques == ["affine8"]
    assert manifest.sites["reference"]["affine8"].matched > 0
    measured(small_checkpoint, tmp_path / "plain", Variant("reference", "float32"), [Variant("a", "bfloat16")])
    assert Manifest.read(tmp_path / "plain").reference.is_plain


def test_the_result_that_is_stored_is_the_last_one(quantised):
    out, _, _ = quantised
    assert {path.name for path in (out / results.FOLDER).iterdir()} == {
        f"{name}__p0__s3.safetensors" for name in ("reference", "same", "plain", "fp32")
    }
    assert result(out, "plain").shape == (1, 6, 64)


def test_a_variant_with_settings_of_its_own_has_a_reference_of_the_same_kind(small_checkpoint):
    technique = named("ffn_scaling")
    spec = RunSpec(
        experiment="reference",
        source=source(small_checkpoint),
        settings=settings(steps=2),
        prompts=["a"],
        seeds=[0],
        variants=[Variant("own", "float16", settings={"steps": 1})],
        baseline="own",
        probes={},
        drift_sites=(),
        latency=LatencySpec(max_rounds=0),
        out=small_checkpoint,
        reference=Variant("reference", "bfloat16", technique),
    )
    first, second = spec.references
    assert first == Variant("reference", "bfloat16", technique)
    assert second == replace(first, name="reference+own", settings={"steps": 1}, reference="reference+own")


QUICK = (
    *("sampler.steps=1", "image.height=32", "image.width=32", "prompts=[a]", "seeds=[0]", "latency.max_rounds=0"),
    *("pinned.cases=null", "probe=[]", f"drift.sites=[{RESULT}]"),
)


@pytest.fixture
def lab(small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*args):
        code = main([*args, f"model.path={small_checkpoint}", *QUICK])
        return code, *capsys.readouterr()

    return call


@unrendered()
def test_the_terminal_and_the_page_say_what_the_reference_is(lab, tmp_path):
    code, out, err = lab("reference.dtype=bfloat16", "+technique@reference.technique=[affine8]", "out=run")
    assert (code, err) == (0, "")
    assert "against bfloat16 with affine8, not against plain float32" in out
    page = (tmp_path / "run" / "report.html").read_text().replace("<wbr>", "")  # where names may break
    assert "reference: bfloat16 with affine8, not plain float32" in page
    assert "reference, computed in bfloat16 with affine8" in page
    code, out, _ = lab("out=plain")
    assert code == 0
    assert "against" not in out
    assert "not plain float32" not in (tmp_path / "plain" / "report.html").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("reference.dtype=bf16",), "reference.dtype is 'bf16', expected one of float32, bfloat16, float16"),
        (("+reference.expect=finite",), "reference.expect"),
        (("+technique@reference.technique=[affin8]",), "Did you mean affine8"),
        (("reference=null",), "reference is None"),
    ],
)
def test_mistakes(lab, tmp_path, args, message):
    code, _, err = lab(*args)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_gate_refuses_another_reference(small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["gate", "gate.update=true", f"model.path={small_checkpoint}", "reference.dtype=bfloat16"]) == 2
    assert "gate: the reference is bfloat16, expected the plain model in float32" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_gate_refuses_a_run_with_another_reference(quantised, capsys):
    assert main(["gate", f"run={quantised[0]}"]) == 2
    assert "gate: the reference is bfloat16 with affine8" in capsys.readouterr().err
