"""`sensitivity`: tables that hold what they say, whatever the number of workers, and mistakes that cost nothing."""

import json
import re
import shutil
import textwrap

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest

from precision_lab.cli import main
from precision_lab.cli.candidates import make
from precision_lab.instrument.tap import tapped
from precision_lab.lab.candidates import Candidate
from precision_lab.lab.forced import Forced
from precision_lab.lab.subject import Case
from precision_lab.record.manifest import Manifest
from precision_lab.record.scan import Scan
from precision_lab.record.scan_tables import KEPT, OF_A_SCAN
from precision_lab.techniques.base import applied
from tests.cli.planted_layers import planted
from tests.spread import thinned
from tests.subjects import settings, source
from tests.undrawn import unrendered

CASE = ("image.height=32", "image.width=64", "sampler.steps=3", "prompts=[two red circles]")
OF = ("of=['transformer_blocks.{1,3}.attn.{to_q,to_out.0}',proj_out,img_in]", "candidate=[affine4,as_stored]")
PARTS = ("latency.min_rounds=0", "latency.max_rounds=0")


@pytest.fixture(scope="module")
def sensitivity(small_checkpoint):
    def call(out, *overrides):
        return main(["sensitivity", f"model.path={small_checkpoint}", *CASE, f"out={out}", *overrides])

    return call


@pytest.fixture(scope="module")
def finished(sensitivity, tmp_path_factory):
    out = tmp_path_factory.mktemp("sensitivity") / "scan"
    assert sensitivity(out, *OF, "confirm=1", "scan.rounds=2") == 0
    return out


def table(folder):
    return pd.read_parquet(folder / "sensitivity.parquet")


def test_what_it_leaves(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {*(f"{name}.parquet" for name in KEPT), "config.yaml", "manifest.json", "report.html", "figures"}
    scan = Scan.open(finished)
    assert scan.manifest.status == "complete"
    assert scan.manifest.reference.computed_in == "float32"
    rows = scan.sensitivity
    assert list(rows.columns) == [column.name for column in OF_A_SCAN["sensitivity"]]
    assert len(rows) == 6 * 2 * 3
    assert list(rows["group"].unique()) == [
        "img_in",
        *(f"transformer_blocks.{i}.attn.{name}" for i in (1, 3) for name in ("to_q", "to_out.0")),
        "proj_out",
    ]
    assert list(rows["step"].unique()) == [0, 1, 2]
    assert (rows["noise_floor"] > 0).all()
    assert rows["noise_floor"].max() < 1e-5
    measured = rows[rows["candidate"] == "affine4"]
    assert (measured["velocity_error"] > measured["noise_floor"]).all()
    assert (measured["bytes_saved"] > 0).all()
    assert measured["seconds_saved"].notna().all()
    stored = rows[rows["candidate"] == "as_stored"]
    assert (stored[["velocity_error", "local_error", "bytes_saved"]] == 0).all().all()
    drift = rows.groupby(["candidate", "group"])["free_drift"].first()
    assert drift.groupby("candidate").count().tolist() == [2, 2]
    assert (drift["as_stored"].dropna() == 0).all()
    assert (finished / "figures" / "sensitivity.png").stat().st_size > 5000
    page = (finished / "report.html").read_text().replace("<wbr>", "")  # where names may break
    assert "transformer_blocks.1.attn.to_out.0" in page


def test_the_numbers_are_those_of_an_independent_computation(finished, small_checkpoint):
    """From a whole step in which the technique is applied, and the module on the inputs of the plain step."""
    made = source(small_checkpoint)
    config = settings(steps=3, height=32, width=64)
    subject, case = made.load(mx.float32), Case(0, "two red circles", 0, config)
    group = "transformer_blocks.1.attn.to_out.0"
    template = {
        "_target_": "precision_lab.techniques.quantized_weights.QuantizedWeights",
        "rules": [{"sites": "SITES", "bits": 4}],
    }
    technique = Candidate("affine4", template, make).technique([group])
    forced = Forced(subject, made.layout, case, (0, 1, 2))
    forced.record(3)
    site = forced.sites[group]
    module = technique.rewrite(site)
    rows = table(finished).query("group == @group and candidate == 'affine4'").set_index("step")
    for step in range(3):
        state = forced.states[step]._replace(uncond=None)
        calls = []
        with tapped([site], calls.append):
            plain = np.array(subject.step(state, step).output, np.float64)
        own, expected = (np.array(x, np.float64) for x in (module(*calls[0].args), calls[0].output))
        with applied(forced.components, {"t": technique}):
            altered = np.array(subject.step(state, step).output, np.float64)
        assert rows.loc[step, "velocity_error"] == pytest.approx(norm(altered - plain) / norm(plain), rel=1e-9)
        assert rows.loc[step, "local_error"] == pytest.approx(norm(own - expected) / norm(expected), rel=1e-9)
    stored = site.module.weight
    groups = stored.size // 64
    assert rows["bytes_saved"].iloc[0] == stored.nbytes - stored.size // 2 - groups * 2 * stored.itemsize


def norm(x):
    return np.linalg.norm(x.ravel())


@unrendered()
def test_the_tables_do_not_depend_on_the_workers_and_a_killed_scan_ends_in_the_same(
    sensitivity, finished, tmp_path, monkeypatch
):
    from precision_lab.lab import scan

    monkeypatch.setattr(scan, "_MOST_PASSES", 2)
    done = 0
    advance = scan.Scan._advance

    def interrupted(self, amount, label):
        nonlocal done
        done += 1
        if done == 12:
            raise KeyboardInterrupt
        advance(self, amount, label)

    monkeypatch.setattr(scan.Scan, "_advance", interrupted)
    out = tmp_path / "scan"
    assert sensitivity(out, *OF, "confirm=1") == 130
    assert Manifest.read(out).status == "interrupted"
    assert list((out / "sensitivity").glob("part-*.parquet"))
    assert not (out / "sensitivity.parquet").exists()
    monkeypatch.setattr(scan.Scan, "_advance", advance)
    assert sensitivity(out, *OF, "confirm=1", "resume=true", "workers=2") == 0
    for name in KEPT:
        expected, found = (pd.read_parquet(folder / f"{name}.parquet") for folder in (finished, out))
        if name == "sensitivity":
            expected["seconds_saved"] = np.nan
        pd.testing.assert_frame_equal(found, expected)


def test_the_scan_in_markdown(finished, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "scan")
    assert main(["report", f"run={copy}", "format=md"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("## ")
    assert "**affine4: 6 groups" in out
    assert "| rank | group |" in out
    assert out == (copy / "report.md").read_text()


@pytest.mark.slow
def test_the_page_is_drawn_again_from_the_tables(finished, tmp_path, capsys):
    copy = tmp_path / "scan"
    shutil.copytree(finished, copy)
    page = (copy / "report.html").read_bytes()
    shutil.rmtree(copy / "figures")
    (copy / "report.html").unlink()
    assert main(["report", f"run={copy}"]) == 0
    assert (copy / "report.html").read_bytes() == page
    assert "affine4: 6 groups" in capsys.readouterr().out


@pytest.mark.parametrize("command", [("gate", "run={}"), ("compare", "runs=[{0},{0}]")])
def test_other_commands_say_what_it_is(finished, capsys, command):
    assert main([part.format(finished) for part in command]) == 2
    assert "holds a scan of sensitivity, expected the run of an experiment" in capsys.readouterr().err


@unrendered()
def test_coarse_groups_and_a_candidate_that_fits_some(sensitivity, tmp_path, capsys):
    out = tmp_path / "scan"
    of = "of=['transformer_blocks.{0,2}.{img_mod.1,img_norm1,attn.to_q}']"
    assert sensitivity(out, of, "by=[operation]", "candidate=[affine8,bfloat16]", "confirm=0", "scan.steps=[2]") == 0
    rows = table(out).set_index(["candidate", "group"])
    assert sorted(rows.loc["bfloat16"].index) == [
        f"transformer_blocks.*.{name}" for name in ("attn.to_q", "img_mod.1", "img_norm1")
    ]
    assert "transformer_blocks.*.img_norm1" not in rows.loc["affine8"].index
    unfit = pd.read_parquet(out / "sensitivity_unfit.parquet")
    assert list(unfit["group"]) == ["transformer_blocks.*.img_norm1"]
    assert "is LayerNorm, expected Linear" in unfit["reason"][0]
    assert (rows["num_sites"] == 2).all()
    assert rows["block"].isna().all()
    said = capsys.readouterr().out
    assert "affine8 is not applicable to 1 of 3 groups" in said
    assert "sensitivity: 3 groups of sites, 5 pairs of group and candidate that fit (affine8, bfloat16), step 2" in said
    assert f"folder: {out}" in said
    assert re.search(r"a pass of \S+ takes .* for this scan", said)


@unrendered()
def test_a_foreign_model(tmp_path):
    from tests.foreign.test_foreign_subject import MODEL

    out = tmp_path / "scan"
    assert main(["sensitivity", *MODEL, "candidate=[bfloat16]", f"out={out}", "seeds=[0,1,2]"]) == 0
    rows = table(out)
    assert list(rows["group"].unique()) == ["stages.0", "stages.1", "stages.2"]
    assert sorted(rows["seed"].unique()) == [0, 1, 2]
    assert (rows["velocity_error"] > 0).all()
    assert sorted(rows["num_recalled"].unique()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    thinned(
        [
            (("candidate=[afine4]",), "Unknown candidate 'afine4'. Did you mean affine4"),
            (
                ("candidate=[gptq]",),
                "candidate gptq: this format cannot be measured yet. The nearest that can is affine4",
            ),
            (("candidate=[q4_k_m]",), "The nearest that can is q4_k"),
            (("candidate=[nunchaku]",), "The nearest that can is svdquant"),
            (("candidate=[]",), "candidate is empty, expected names"),
            (("of=[transformer_blocks.*.attn.to_qq]",), "matches nothing. Did you mean"),
            (("of=[]",), "of is empty"),
            (("by=[blok]",), "by: unknown key 'blok', expected one of site, operation, block"),
            (("by=[]",), "by is [], expected some of"),
            (("scan.steps=[3]",), "scan.steps holds 3, expected numbers from 0 to 2, the last step"),
            (("scan.steps=[-1]",), "scan.steps holds -1"),
            (("scan.steps=[]",), "scan.steps is []"),
            (("scan.steps=[1,1]",), "expected each step once"),
            (("scan.steps=last",), "scan.steps is 'last', expected numbers of steps"),
            (("confirm=-1",), "confirm is -1, expected a whole number of at least 0"),
            (("scan.rounds=-1",), "scan.rounds is -1"),
            (("scan.cases=0",), "scan.cases is 0"),
            (("of=[transformer_blocks.*.img_norm1]",), "candidate affine4 fits none of the 4 groups"),
            (("technique=[affine4]",), "expected no variants and no techniques"),
            (("+exp=recipes",), "expected no variants and no techniques"),
            (("reference.dtype=bfloat16",), "expected no other reference"),
            (("candidate@noise=[affine4]",), "noise.affine4 changes the function of the model"),
            (("scan.step=[1]",), "Unknown setting 'scan.step'. Did you mean scan.steps"),
            (("candidate.affine4.rules=[]",), "nothing in it is SITES"),
            (("dtype=float64",), "expected one of"),
            (("resume=true",), "holds no run"),
        ],
        keep=7,
    ),
)
def test_mistakes(sensitivity, tmp_path, capsys, overrides, message):
    out = tmp_path / "scan"
    assert sensitivity(out, *overrides) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) <= 2
    assert not out.exists()


def test_a_plain_model_that_is_not_finite_is_refused(small_checkpoint, sensitivity, tmp_path, capsys):
    checkpoint = planted(small_checkpoint, tmp_path / "planted", [1], [0], 2.0**22)
    out = tmp_path / "scan"
    assert sensitivity(out, "dtype=float16", f"model.path={checkpoint}") == 2
    assert "plain model in float16 has an output that is not finite, in step 0" in capsys.readouterr().err
    assert not out.exists()


def test_a_candidate_that_raises_fails_the_scan(sensitivity, tmp_path, capsys, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        textwrap.dedent(
            """
            from precision_lab import Wrapper


            class _Failing(Wrapper):
                def __call__(self, x):
                    raise RuntimeError("no such kernel")


            class Failing:
                preserves_function, composes = False, False

                def __init__(self, sites):
                    self.sites = sites

                def rewrite(self, site):
                    return _Failing(site.module)
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "scan"
    theirs = "+candidate.theirs={_target_: theirs.Failing, sites: SITES}"
    assert sensitivity(out, *OF, theirs) == 1
    err = capsys.readouterr().err
    assert "The scan failed: RuntimeError: no such kernel (" in err
    assert "theirs.py:7)" in err
    assert Manifest.read(out).status == "failed"
    assert main(["report", f"run={out}"]) == 2
    assert "holds a scan that is not finished" in capsys.readouterr().err


def test_damaged_parts_are_named(sensitivity, finished, tmp_path, capsys):
    copy = tmp_path / "scan"
    shutil.copytree(finished, copy)
    (copy / "sensitivity.parquet").write_bytes(b"PAR1")
    assert main(["report", f"run={copy}"]) == 2
    assert "sensitivity.parquet is not a table that can be read" in capsys.readouterr().err
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    assert sensitivity(copy, *OF, "confirm=1", "scan.rounds=2", "resume=true") == 2
    assert "Remove it: resume=true makes it again" in capsys.readouterr().err


@pytest.mark.slow
@unrendered()
def test_a_language_model_whose_caches_forbid_replay(tmp_path, capsys):
    pytest.importorskip("mlx_lm")
    from tests.model.test_mlx_lm import write

    out = tmp_path / "scan"
    overrides = (
        "sampler.steps=3",
        "prompts=[two red circles on a blue background]",
        "candidate=[affine4]",
        "confirm=1",
    )
    path = f"model.path={write(tmp_path / 'lm')}"
    assert main(["sensitivity", "model=mlx_lm", path, f"out={out}", "by=[operation]", *overrides]) == 0
    notes = Manifest.read(out).notes
    assert any("3 blocks are computed in every pass" in note and "KVCache" in note for note in notes), notes
    rows = table(out)
    assert (rows["num_recalled"] == 0).all()
    assert (rows["velocity_error"] > rows["noise_floor"]).all()
    assert (rows["local_error"] > 1e-3).all()
    assert set(rows["operation"]) >= {"self_attn.q_proj", "mlp.down_proj"}
