"""`compare` on run folders: differences first, then numbers; any variant of any run as the reference; several runs."""

import json
import shutil

import numpy as np
import pytest
from rich.cells import cell_len

from precision_lab.analysis import summary
from precision_lab.cli import compare_tables, main
from precision_lab.record import results
from precision_lab.record.run import Run
from tests.report.fabricated_run import fabricate
from tests.spread import thinned

SMALL = {"blocks": 3, "steps": 2, "prompts": ("a bicycle", "a lake"), "seeds": (0,), "side": 24, "teacher": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes each kind of run folder once."""
    known = {}

    def make(**changes):
        key = json.dumps(changes)
        if key not in known:
            known[key] = fabricate(tmp_path_factory.mktemp("runs") / "run", **(SMALL | changes))
        return known[key]

    return make


@pytest.fixture
def run(tmp_path, made):
    """Makes run folders, and edits their manifest and configuration."""

    def make(name, manifest=None, config=None, offset=0.0, **changes):
        folder = tmp_path / name
        shutil.copytree(made(**changes), folder)
        record = json.loads((folder / "manifest.json").read_text())
        for path, value in (manifest or {}).items():
            *parents, last = path.split(".")
            at = record
            for parent in parents:
                at = at[parent]
            at[last] = value
        (folder / "manifest.json").write_text(json.dumps(record))
        if config is not None:
            (folder / "config.yaml").write_text(config)
        rng = np.random.default_rng(0)
        for variant in record["variants"]:
            for prompt in range(len(record["prompts"])):
                latents = rng.normal(size=(1, 16, 4)) + 0.5
                results.write(results.path_of(folder, variant, prompt, 0), (latents * (1 + offset)).astype(np.float32))
        return folder

    return make


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """What the page and its tables hold is tested in test_comparing.py."""
    monkeypatch.setattr("precision_lab.cli.compare._write", lambda *_: None)


@pytest.fixture
def said(capsys, monkeypatch):
    monkeypatch.setattr("precision_lab.cli.terminal._WIDTH_OF_LOGS", 400)

    def call(*args):
        code = main(["compare", *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def rows(out, first):
    return [line.split() for line in out.splitlines() if line.startswith(f"{first} ")]


def test_two_runs_that_differ_in_nothing(run, said):
    code, out, err = said(f"runs=[{run('a')},{run('b')}]")
    assert (code, err) == (0, "")
    assert "The runs are alike" in out
    (first, *_) = [row for row in rows(out, "baseline") if row[1:3] == ["2", "2"]]
    assert first == ["baseline", "2", "2", "0", "0", "0", "identical", "identical", "1", "1"]


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_the_results_of_a_run_are_computed_once(run, said, monkeypatch, names):
    computed = []
    whole = summary._variant
    monkeypatch.setattr(summary, "_variant", lambda run, name: computed.append((run.path, name)) or whole(run, name))
    code, _, _ = said(f"runs=[{','.join(str(run(name)) for name in names)}]")
    assert code == 0
    assert len(set(computed)) == len(computed) >= len(names)


def test_differences_come_before_any_number(run, said):
    changes = {"checkpoint.fingerprint": "sha256:77", "environment.mlx": "0.99"}
    settings = "probe: {range: {sites: [img_in]}}\nvariants: {baseline: {technique: {t: {factor: 8}}}}\n"
    code, out, err = said(f"runs=[{run('a')},{run('b', changes, settings, offset=0.25, seeds=(0, 4))}]")
    assert (code, err) == (0, "")
    numbers = out.index("Headline numbers")
    for what in ("checkpoint.fingerprint", "environment.mlx", "seeds", "probe.range", "technique.t.factor"):
        assert 0 < out.index(what) < numbers, what
    assert "each run over its own cases (2 and 4)" in out
    (row,) = [row for row in rows(out, "ffn_scaling") if row[1:3] == ["2", "0"]]
    assert (float(row[4]), float(row[5])) == pytest.approx((0.25, 0.25), rel=1e-5), "the planted relative L2 distance"


def test_a_non_finite_variant_is_counted(run, said):
    second = run("b")
    lost = np.full((1, 16, 4), np.nan, np.float32)
    results.write(results.path_of(second, "baseline", 1, 0), lost)
    _, out, _ = said(f"runs=[{run('a')},{second}]")
    (row,) = [row for row in rows(out, "baseline") if row[1] == "2" and len(row) > 8]
    assert row[1:4] == ["2", "1", "1"]


def test_cases_with_other_settings_are_not_compared(run, said):
    code, out, _ = said(f"runs=[{run('a')},{run('b', {'case.steps': 5})}]")
    assert code == 0
    assert "case.steps" in out
    assert "No case of the two is alike, their settings differ" in out
    assert "Outcomes of" not in out


def test_runs_of_different_models(run, said):
    code, out, _ = said(f"runs=[{run('a')},{run('b', {'checkpoint.name': 'other'}, blocks=5)}]")
    assert code == 0
    assert "different models: full_synthetic and other (depth 3 and 5)" in out
    assert "Outcomes of" not in out
    assert "Largest changes" not in out


def test_any_variant_of_any_run_is_the_reference(run, said):
    first, second = run("a"), run("b", offset=0.5)
    code, out, err = said(f"runs=[{first},{second}]", f"reference={first}:ffn_scaling")
    assert (code, err) == (0, "")
    here = {row[1]: row for row in rows(out, "a")}
    assert set(here) == {"reference", "baseline", "float16"}, "a variant is not compared with itself"
    latents = {
        name: np.concatenate([results.read(results.path_of(first, name, p, 0)).ravel() for p in (0, 1)])
        for name in ("ffn_scaling", "baseline")
    }
    per_case = [
        np.linalg.norm(a - b) / np.linalg.norm(b)
        for a, b in zip(np.split(latents["baseline"], 2), np.split(latents["ffn_scaling"], 2), strict=True)
    ]
    assert float(here["baseline"][5]) == pytest.approx(np.median(per_case), rel=1e-4)
    assert float(here["baseline"][6]) == pytest.approx(max(per_case), rel=1e-4)
    there = {row[1]: row for row in rows(out, "b")}
    assert float(there["ffn_scaling"][5]) == pytest.approx(0.5, rel=1e-5)


def test_a_run_alone_names_its_own_reference(run, said):
    folder = run("a")
    code, out, _ = said(f"runs=[{folder}]", f"reference={folder}")
    assert code == 0
    assert {row[1] for row in rows(out, "a")} == {"baseline", "ffn_scaling", "float16"}
    assert "variant reference of" in out


def test_several_runs_and_patterns_are_one_table(run, said, tmp_path):
    for number, steps in ((2, 3), (10, 4), (1, 2)):
        run(f"{number}", {"case.steps": steps, "checkpoint.fingerprint": f"f{number}"})
    (tmp_path / "multirun.yaml").touch()
    code, out, err = said(f"runs=[{tmp_path}/*]")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "3 runs"
    assert lines[1].split()[:3] == ["run", "variant", "case.steps"]
    assert [line.split()[:3] for line in lines if "baseline" in line] == [
        ["1", "baseline", "2"],
        ["2", "baseline", "3"],
        ["10", "baseline", "4"],
    ]
    assert "fingerprint" not in out


@pytest.mark.parametrize("width", thinned([80, 100], keep=1))
def test_tables_fit(run, capsys, monkeypatch, width):
    monkeypatch.setattr("precision_lab.cli.terminal._WIDTH_OF_LOGS", width)
    names = ("reference", "baseline", "baseline+fp32_residual+fp32_modulation+fp32_norms")
    first, second, third = (
        run(name, {"case.steps": at, "environment.mlx": f"0.{at}", "prompts": [f"a{at} " * 50, ""]}, variants=names)
        for at, name in enumerate("abc")
    )
    for args in ([f"runs=[{first},{second}]"], [f"runs=[{first},{second},{third}]"]):
        assert main(["compare", *args]) == 0
    assert main(["compare", f"runs=[{first}]", f"reference={first}:baseline"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("first: ", "second: "))]
    assert max(map(cell_len, lines)) <= width, max(lines, key=cell_len)


def test_read_only_folders_are_enough(run, said):
    folders = [run("a"), run("b")]
    before = [sorted(path.name for path in folder.rglob("*")) for folder in folders]
    stamps = [(folder / "summary.json").stat().st_mtime_ns for folder in folders]
    assert said(f"runs=[{folders[0]},{folders[1]}]")[0] == 0
    assert [sorted(path.name for path in folder.rglob("*")) for folder in folders] == before
    assert [(folder / "summary.json").stat().st_mtime_ns for folder in folders] == stamps


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("runs=[{a}]",), "two or more runs, or reference=RUN:VARIANT"),
        (("runs=[]",), "compare needs runs=[A,B]"),
        (("runs=[{a},{a}/nothing*]",), "matches no folder of a run (0 other files and folders)"),
        (("runs=[{a}]", "reference={a}:basline"), "has no variant 'basline'. Did you mean baseline"),
        (("runs=[{a}]", "reference=nowhere:baseline"), "nowhere is not the folder of a run"),
        (("runs=[{a},{b}]",), "reference=RUN:VARIANT compares the outcomes"),
        (("runs=[{a},{c}]",), "config.yaml cannot be read"),
    ],
)
def test_mistakes(run, said, args, message):
    folders = {"a": run("a"), "b": run("b", variants=("x", "y")), "c": run("c", config="a: [")}
    code, _, err = said(*(arg.format(**folders) for arg in args))
    assert code == 2
    assert message in err
    assert 1 <= len(err.strip().splitlines()) <= 2


def test_settings_that_are_no_mapping_are_refused(run):
    from precision_lab.errors import InputError

    with pytest.raises(InputError, match="holds no settings"):
        compare_tables.settings_of(Run.open(run("a", config="- a\n")))
