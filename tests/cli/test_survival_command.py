"""`survival`: what it leaves, the three kinds of change, claims, and mistakes in the input."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest

from precision_lab.cli import main
from precision_lab.lab import survival
from precision_lab.record.survival import COLUMNS, Findings
from tests.spread import thinned
from tests.undrawn import unrendered

OF = "of=['transformer_blocks.{0..1}.{attn.to_q,img_mlp.net.2}']"
Q, MLP = "transformer_blocks.{}.attn.to_q", "transformer_blocks.{}.img_mlp.net.2"
FORMATS = "candidate=[affine4,int8,q4_k]"


@pytest.fixture(scope="module")
def call(small_checkpoint):
    def run(out, *overrides, model=small_checkpoint):
        return main(["survival", f"model.path={model}", f"out={out}", *overrides])

    return run


@pytest.fixture(scope="module")
def finished(call, tmp_path_factory):
    out = tmp_path_factory.mktemp("survival") / "made"
    claims = "claim@claims=[lora_survival]"
    assert call(out, OF, "rms=0.03", "candidate=[affine4,int8]", claims) == 0
    return out


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA of rank 2 on to_q of block 1, of 64 channels, and its change in NumPy."""
    rng = np.random.default_rng(4)
    down, up = rng.standard_normal((2, 64)).astype(np.float32), 0.01 * rng.standard_normal((64, 2)).astype(np.float32)
    path = tmp_path_factory.mktemp("adapter") / "lora.safetensors"
    prefix = f"transformer.{Q.format(1)}"
    arrays = {f"{prefix}.lora_A.weight": mx.array(down), f"{prefix}.lora_B.weight": mx.array(up)}
    mx.save_safetensors(str(path), arrays)
    return path, up @ down


def other_of(small_checkpoint, folder, change):
    """A copy of the checkpoint in which `change` was applied to the tensors of its transformer."""
    shutil.copytree(small_checkpoint, folder)
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        arrays = dict(mx.load(str(file)))
        mx.eval(arrays)
        for name in arrays:
            arrays[name] = change(name, arrays[name])
        mx.save_safetensors(str(file), arrays, metadata={"format": "pt"})
    return folder


def test_what_it_leaves(finished, capsys):
    table, found = pd.read_parquet(finished / "survival.parquet"), Findings.read(finished)
    assert list(table) == [column.name for column in COLUMNS]
    assert len(table) == 4 * 2 * 2 * 2
    assert set(table["site"]) == {each.format(block) for each in (Q, MLP) for block in (0, 1)}
    assert set(table["operation"]) == {"attn.to_q", "img_mlp.net.2"}
    assert set(table["block"]) == {0, 1}
    assert (table["delta_rms"] / table["weight_rms"]).to_numpy() == pytest.approx(0.03, rel=1e-4)
    assert (found.status, found.sites, found.unchanged) == ("complete", 4, 0)
    assert found.checkpoint.weights == "synthetic"
    assert {path.name for path in finished.iterdir()} == {
        *("config.yaml", "survival.json", "survival.parquet", "report.html", "figures"),
    }
    assert {path.name for path in (finished / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("survival", "survival_map") for kind in ("png", "svg")
    }
    page = (finished / "report.html").read_text().replace("<wbr>", "")  # where names may break
    for text in ("affine4", "worst linear", "by construction", "L_unchanged", "synthetic", "a uniform quantiser"):
        assert text in page


def test_the_claims_are_judged_by_the_median_over_the_linears(finished):
    table = pd.read_parquet(finished / "survival.parquet")
    verdicts = {claim["id"]: claim for claim in json.loads((finished / "survival.json").read_text())["claims"]}
    assert set(verdicts) == {"L_step", "L_unchanged", "L_correlation", "L_correlation_changed", "L_order"}
    own = table[(table["format"] == "affine4") & (table["order"] == "after") & (table["rounding"] == "nearest")]
    assert verdicts["L_unchanged"]["effect"] == pytest.approx((1 - own["changed_codes"]).median())
    assert verdicts["L_correlation_changed"]["effect"] == pytest.approx(own["correlation_changed"].median())
    before = table[(table["format"] == "affine4") & (table["order"] == "before") & (table["rounding"] == "nearest")]
    assert before["gain"].median() > 0.8
    assert verdicts["L_order"]["verdict"] == "refuted"
    summary = Findings.read(finished).summary
    assert summary["affine4"]["before"]["nearest"]["gain"] == pytest.approx(before["gain"].median())


def test_what_arrives_in_markdown_and_as_a_badge(finished, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert main(["report", f"run={copy}", "format=md"]) == 0
    out = capsys.readouterr().out
    assert "| format | step / delta |" in out
    assert "**refuted**" in out
    assert main(["report", f"run={copy}", "format=badge"]) == 0
    assert "refuted" in (copy / "badge.svg").read_text()


def test_the_report_is_drawn_again(finished, capsys):
    before = {path.name: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main(["report", f"run={finished}"]) == 0
    assert {path.name: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    out = capsys.readouterr().out
    assert "worst linear" in out
    assert "refuted" in out


@unrendered()
def test_a_second_time_with_streamed_weights_the_table_is_the_same(call, finished, tmp_path):
    assert call(tmp_path / "stream", OF, "rms=0.03", "candidate=[affine4,int8]", "model.stream=true") == 0
    assert Findings.read(tmp_path / "stream").stated == []
    streamed = pd.read_parquet(tmp_path / "stream" / "survival.parquet")
    pd.testing.assert_frame_equal(streamed, pd.read_parquet(finished / "survival.parquet"))


@unrendered()
def test_an_adapter_changes_only_its_linears(call, adapter, tmp_path):
    path, change = adapter
    assert call(tmp_path / "lora", f"adapter={path}", "strength=0.5", FORMATS) == 0
    table = pd.read_parquet(tmp_path / "lora" / "survival.parquet")
    assert set(table["site"]) == {Q.format(1)}
    assert set(table["format"]) == {"affine4", "int8"}
    rms = np.sqrt((0.5 * change.astype(np.float64)) ** 2).reshape(-1)
    assert table["delta_rms"].to_numpy() == pytest.approx(np.sqrt((rms**2).mean()), rel=1e-4)
    found = Findings.read(tmp_path / "lora").formats
    assert (found["q4_k"].fits, found["q4_k"].of, found["affine4"].reason) == (0, 1, "")
    assert "64" in found["q4_k"].reason


@unrendered()
def test_a_second_checkpoint_changes_what_differs(call, small_checkpoint, tmp_path):
    name = f"{Q.format(0)}.weight"
    other = other_of(small_checkpoint, tmp_path / "other", lambda key, x: x * 1.25 if key == name else x)
    assert call(tmp_path / "out", OF, f"other={other}", "candidate=[affine4]") == 0
    table, found = pd.read_parquet(tmp_path / "out" / "survival.parquet"), Findings.read(tmp_path / "out")
    assert set(table["site"]) == {Q.format(0)}
    assert (table["delta_rms"] / table["weight_rms"]).to_numpy() == pytest.approx(0.25, rel=0.02)
    assert (found.sites, found.unchanged) == (1, 3)


@pytest.mark.slow
@unrendered()
def test_without_candidates_all_formats_are_measured(call, tmp_path, capsys):
    one = "of=['transformer_blocks.0.attn.to_q']"
    assert call(tmp_path / "all", one, "orders=[after]", "roundings=[nearest]", "rank=null", "seed=3") == 0
    table, found = pd.read_parquet(tmp_path / "all" / "survival.parquet"), Findings.read(tmp_path / "all")
    assert {"affine2", "affine8", "as_stored", "mxfp4", "nvfp4", "int8", "q4_0", "nf4", "fp8_unscaled"} <= set(
        table["format"]
    )
    assert table.groupby("format")["step"].first()[["affine2", "mxfp4", "int8", "q4_0", "nf4"]].notna().all()
    assert "q6_k" in found.formats
    assert "q6_k fits 0 of 1 linears" in capsys.readouterr().out
    assert found.change == "generated, Gaussian, full rank, rms 0.1 of each weight's, seed 3"


@unrendered()
def test_what_is_finished_is_kept_when_it_is_interrupted(call, tmp_path, monkeypatch):
    original, seen = survival.Survival._in_format, []

    def stopping(self, site, *rest):
        seen.append(site)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, site, *rest)

    monkeypatch.setattr(survival.Survival, "_in_format", stopping)
    assert call(tmp_path / "cut", OF, "candidate=[int8]") == 130
    assert Findings.read(tmp_path / "cut").status == "interrupted"
    assert pd.read_parquet(tmp_path / "cut" / "survival.parquet")["site"].nunique() == 2
    assert "interrupted" in (tmp_path / "cut" / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "words"),
    thinned(
        [
            (("candidate=[affine44]",), "affine44"),
            (("candidate=[float16]",), "candidate float16 stores no weights in a format"),
            (("rms=0",), "rms is 0, expected a number above 0"),
            (("rms=nan",), "rms"),
            (("adapter=nowhere.safetensors",), "nowhere.safetensors"),
            (("other=nowhere/model",), "nowhere/model"),
            (("rms=0.1", "adapter=a.safetensors"), "adapter= and rms= each state a change"),
            (("strength=2",), "strength=2 is that of adapter= or other="),
            (("orders=[during]",), "orders is 'during'"),
            (("of=[nowhere]",), "nowhere"),
            (("of=['transformer_blocks.0.attn.norm_q']",), "names no linear"),
            (("sampler.steps=3",), "survival has no use for sampler.steps"),
            (("candidate=[q4_k]", "of=['transformer_blocks.0.attn.to_q']"), "No format fits any of the linears. q4_k"),
            (
                ("+claims.a={text: a, source: b, metric: drift, relation: equal, subject: 'x', bound: 1}",),
                "that of a run",
            ),
            (
                ("+claims.a={text: a, source: b, metric: survived_gain, relation: equal, subject: int8, bound: 1}",),
                "expected FORMAT:ORDER:ROUNDING",
            ),
        ],
        keep=5,
    ),
)
def test_mistakes_are_one_line_and_leave_nothing(call, tmp_path, capsys, overrides, words):
    assert call(tmp_path / "out", *overrides) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_adapter_for_another_architecture_is_refused(call, tmp_path, capsys, small_checkpoint_21):
    path = tmp_path / "lora.safetensors"
    shapes = {"lora_A": (2, 256), "lora_B": (64, 2)}
    mx.save_safetensors(
        str(path), {f"transformer.{MLP.format(1)}.{part}.weight": mx.ones(shape) for part, shape in shapes.items()}
    )
    assert call(tmp_path / "out", f"adapter={path}", "model=micro_21", model=small_checkpoint_21) == 2
    error = capsys.readouterr().err
    assert "lora.safetensors" in error
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_names_none_of_the_linears_is_refused(call, adapter, tmp_path, capsys):
    assert call(tmp_path / "out", f"adapter={adapter[0]}", "of=['transformer_blocks.0.**']") == 2
    assert f"but {Q.format(1)}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_architecture_or_without_a_difference_is_refused(
    call, small_checkpoint, small_checkpoint_21, tmp_path, capsys
):
    assert call(tmp_path / "out", OF, f"other={small_checkpoint_21}") == 2
    assert str(small_checkpoint_21) in capsys.readouterr().err
    assert call(tmp_path / "out", OF, f"other={small_checkpoint}", "candidate=[int8]") == 2
    assert "is zero at all 4 linears" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_result_is_refused(call, finished, capsys):
    assert call(finished, OF) == 2
    assert "already holds survival.json" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "column", "share", "json", "claim"])
def test_a_damaged_folder_is_named(finished, tmp_path, capsys, damage):
    folder = shutil.copytree(finished, tmp_path / "copy")
    path = folder / "survival.parquet"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "claim":
        path = folder / "survival.json"
        path.write_text(path.read_text().replace('"metric": "step_over_delta"', '"metric": "steps"', 1))
    elif damage == "json":
        path = folder / "survival.json"
        path.write_text(path.read_text().replace('"sites": 4', '"sites": "four"'))
    else:
        table = pd.read_parquet(path)
        table = table.drop(columns="gain") if damage == "column" else table.assign(changed_codes=1.5)
        table.to_parquet(path)
    assert main(["report", f"run={folder}"]) == 2
    error = capsys.readouterr().err
    assert ("Claim L_step" if damage == "claim" else path.name) in error
    assert len(error.strip().splitlines()) == 1
