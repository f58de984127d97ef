"""What is not understood is refused, own files and own code included; what is a fault of ours says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.lab.measures import LatencySpec
from tests.malformed.harness import Accepted, dry
from tests.spread import thinned

__all__ = ["dry"]

OWN = """\
from dataclasses import dataclass, field
from collections.abc import Sequence


@dataclass(frozen=True)
class Mine:
    sites: Sequence[str]
    factor: float = 2.0
    count: int = 3
    composes = preserves_function = False

    def __post_init__(self):
        if self.factor == 13:
            raise LookupError("no such factor")

    def rewrite(self, site):
        return site.module


@dataclass(frozen=True)
class Peak:
    sites: Sequence[str]
    ports: Sequence[str] = ("out",)

    def measure(self, x):
        return {"peak": abs(x).max()}
"""


@pytest.fixture
def own(tmp_path, monkeypatch, small_checkpoint, capsys):
    """A folder with code and configurations of a user; calls the command line there: exit code and message."""
    (tmp_path / "own_code.py").write_text(OWN)
    (tmp_path / "broken_code.py").write_text("x = 1\ndef f(:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    files = {
        "technique/mine": "mine: {_target_: own_code.Mine, sites: [norm_out]}\n",
        "probe/peak": "peak: {_target_: own_code.Peak, sites: [norm_out]}\n",
        "exp/theirs": "# @package _global_\nexperiment: theirs\nsampler: {steps: 2}\n",
    }
    for name, text in files.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def call(*arguments, **texts):
        for name, text in texts.items():
            (tmp_path / "conf" / f"{name.replace('__', '/')}.yaml").write_text(text)
        before = set(tmp_path.rglob("*"))
        try:
            code = main([*arguments, "--config-dir", "conf", f"model.path={small_checkpoint}"])
        except Accepted:
            code = 0
        left = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} - before
        assert not left, "nothing is left behind"
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("setting", "message"),
    thinned(
        [
            ("+seed=3", "Unknown setting 'seed'. Did you mean seeds"),
            ("+steps=9", "Unknown setting 'steps'. Did you mean pinned.steps, sampler.steps?"),
            ("+lora=F", "Unknown setting 'lora'"),
            ("+scheduler.shift_terminal=null", "Unknown setting 'scheduler'"),
            ("+drift.sties=[a]", "Unknown setting 'drift.sties'. Did you mean sites?"),
            ("+drift.teacher.foo=1", "Unknown setting 'drift.teacher.foo'"),
            ("+factorial.foo=1", "Unknown setting 'factorial.foo'"),
            ("+latency.rounds=1", "Unknown setting 'latency.rounds'. Did you mean min_rounds, max_rounds"),
            ("+learning.prompt=[a]", "Unknown setting 'learning.prompt'. Did you mean prompts?"),
            ("+pinned.step=1", "Unknown setting 'pinned.step'. Did you mean steps"),
            (
                "+variants.baseline.process.tf=true",
                "Unknown setting 'variants.baseline.process.tf'. Did you mean tf32?",
            ),
            ("+gate.margin=1", "Unknown setting 'gate.margin'"),
            ("+sampler.height=64", "sampler.height and image.height are the same setting"),
            ("seeds=[1.5]", "seeds[0] is 1.5, expected a whole number"),
            ("only=[null]", "only[0] is None, expected text"),
            ("latency.margin='['", "latency.margin is '[', expected a number above 0, or null"),
            (
                "probe.range.sites=norm_out",
                "probe.range.sites is 'norm_out', expected a list like probe.range.sites=[a,b]",
            ),
            ("technique=[true]", "technique=[true] chooses options of the group technique, expected a name"),
            ("probe=0.1", "probe=0.1 chooses options of the group probe"),
            ("prompts=['a\0b']", "prompts"),
            ("image.height=100000000", "image.height is 100000000"),
            ("sampler.steps=100000000000", "sampler.steps is 100000000000"),
            ("sampler.guidance_scale=inf", "sampler.guidance_scale is inf, expected a finite number"),
            ("drift.sites=['x.{0..99999999}']", "has more than 4096 numbers"),
            ("workers=1000000", "workers is 1000000, expected null or a number of processes from 1 to"),
            ("dtype=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
            ("technique=[mien]", "Unknown technique 'mien'. Did you mean mine"),
            ("+exp=their", "Unknown experiment 'their'. Did you mean theirs"),
        ],
        keep=8,
    ),
)
def test_settings(own, setting, message):
    code, err = own(setting)
    assert code == 2
    assert message in err
    assert 1 <= len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("setting", "message"),
    thinned(
        [
            ("technique.mine.factr=3", "Unknown setting 'technique.mine.factr'. Did you mean factor"),
            ("technique.mine.factor=text", "technique.mine.factor is 'text', expected a number"),
            ("technique.mine.count=2.5", "technique.mine.count is 2.5, expected a whole number"),
            ("technique.mine.sites=norm_out", "technique.mine.sites is 'norm_out', expected a list"),
            ("~technique.mine.sites", "Setting 'technique.mine.sites' is missing"),
            ("technique.mine.factor=13", "own_code.Mine raised LookupError: no such factor (own_code.py:14)"),
            ("technique.mine._target_=own_code.Mien", "own_code has no 'Mien'. Did you mean Mine"),
            ("technique.mine._target_=own_cod.Mine", "no module 'own_cod' is installed or in the working folder"),
            ("technique.mine._target_=broken_code.Mine", "importing broken_code raised SyntaxError: invalid syntax"),
            ("technique.mine._target_=broken_code.Mine", "(broken_code.py:2)"),
            ("technique.mine._target_=own_code.Peak", "own_code.Peak is no Technique, it lacks"),
        ],
        keep=5,
    ),
)
def test_keys_beside_a_target(own, setting, message):
    prefix = "" if setting.startswith("~") else "++"
    code, err = own("technique=[mine]", prefix + setting)
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    "setting", thinned(["sampler.steps=3.0", "image.height=128.0", "seeds=[1.0]", "workers=2.0"], keep=1)
)
def test_whole_floats_are_integers(own, dry, setting):
    assert own(setting) == (0, "")


def test_whole_floats_reach_an_own_class_as_integers(own, dry, monkeypatch):
    from precision_lab.lab import run

    seen = []
    monkeypatch.setattr(run, "run", lambda spec, *rest: seen.append(spec) or (_ for _ in ()).throw(Accepted))
    assert own("technique=[mine]", "+technique.mine.count=5.0", "+technique.mine.factor=3") == (0, "")
    (technique,) = seen[0].variants[-1].techniques.values()
    assert (technique.count, type(technique.count)) == (5, int)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiment: x\nx: [1, 2\n", "exp/theirs.yaml: not YAML that can be read, line"),
        ("defaults: 3\n", "exp/theirs"),
        ("x: !!python/object/apply:os.getcwd []\n", "exp/theirs.yaml: not YAML that can be read, line 1"),
        ("# @package _global_\nseed: 3\n", "Unknown setting 'seed'"),
        ("# @package _global_\nprompt: a\n", "Unknown setting 'prompt'. Did you mean prompts"),
        ("# @package _global_\ndrift: {foo: 1}\n", "Unknown setting 'drift.foo'"),
        ("# @package _global_\nlatency: {margin: .nan}\n", "latency.margin is nan, expected a finite number"),
        ("# @package _global_\nexperiment: ${baseline}\nbaseline: ${experiment}\n", "experiment"),
    ],
)
def test_own_files(own, text, message):
    code, err = own("+exp=theirs", exp__theirs=text)
    assert code == 2
    assert message in err
    assert 1 <= len(err.splitlines()) <= 2


def test_aliases_that_would_fill_the_memory_are_refused(own):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    code, err = own("+exp=theirs", exp__theirs="\n".join(lines))
    assert code == 2
    assert "theirs.yaml: its aliases make more than 100000 entries" in err


def test_prompts_of_a_file(own, dry, monkeypatch, tmp_path):
    from precision_lab.lab import run

    seen = []
    monkeypatch.setattr(run, "run", lambda spec, *rest: seen.append(spec) or (_ for _ in ()).throw(Accepted))
    (tmp_path / "prompts.txt").write_text("a red circle\n\n costs ${5}, größe \n", encoding="utf-8")
    assert own("prompts=@prompts.txt") == (0, "")
    assert seen[0].prompts == ["a red circle", "costs ${5}, größe"]
    assert "a red circle" in seen[0].resolved
    (tmp_path / "latin.txt").write_bytes(b"gr\xf6\xdfe\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    for given, message in (("nowhere.txt", "cannot be read"), ("latin.txt", "UTF-8"), ("empty.txt", "no prompt")):
        code, err = own(f"prompts=@{given}")
        assert code == 2
        assert f"prompts=@{given}" in err
        assert message in err


@pytest.mark.parametrize("place", thinned(range(4), keep=2))
def test_options_may_stand_anywhere(own, dry, monkeypatch, tmp_path, capsys, place):
    (tmp_path / "other").mkdir()
    arguments = ["prove", "technique=[fp32_norms]", "draws=0"]
    arguments[place:place] = ["--config-dir", "conf"]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("draws is 0")
    assert main(["--cfg", "job", "compare"]) == 0
    assert "runs" in capsys.readouterr().out


def test_a_second_command_is_named(own):
    code, err = own("dtype=float16", "gate")
    assert code == 2
    assert err.startswith("Cannot read 'gate': ")
    assert "a command comes before the overrides" in err


def test_a_fault_of_ours_is_exit_code_3_with_the_traceback_in_a_file(own, monkeypatch, tmp_path, capsys):
    from precision_lab.cli import run

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(run, "build_spec", lambda *given: {}["planted"])
    assert main(["seeds=[0]"]) == 3
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "KeyError" in err
    (saved,) = tmp_path.glob("precision_lab-*.txt")
    assert str(saved) in err
    assert "Traceback" in saved.read_text()
    assert '{}["planted"]' in saved.read_text()


def test_max_rounds_0_alone_means_no_timing():
    assert LatencySpec(max_rounds=0) == LatencySpec(min_rounds=0, max_rounds=0)
    with pytest.raises(InputError, match="min_rounds is 10"):
        LatencySpec(max_rounds=5)


def test_a_sweep_writes_into_its_folder_alone(tmp_path, monkeypatch, small_checkpoint, capsys):
    from precision_lab.cli import run

    monkeypatch.chdir(tmp_path)

    def writing(config, command):
        spec = run.build_spec(config, command)
        spec.out.mkdir(parents=True)
        (spec.out / "seen.json").write_text(json.dumps(spec.seeds))
        return 0

    monkeypatch.setattr(run, "task", writing)
    assert main(["-m", "+exp=plain", "seeds=[0],[1]", f"model.path={small_checkpoint}"]) == 0
    (sweep,) = (tmp_path / "results" / "multirun").iterdir()
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "multirun.yaml"}
    assert [json.loads((sweep / name / "seen.json").read_text()) for name in "01"] == [[0], [1]]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["multirun"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("command", thinned([[], ["report"], ["compare"]], keep=1))
def test_a_sweep_of_mistakes_leaves_nothing(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    settings = {"report": "run=nowhere,elsewhere", "compare": "runs=[a],[b]"}.get("".join(command), "seeds=[-1],[-2]")
    assert main([*command, "-m", settings]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_script_finds_modules_of_the_working_folder(tmp_path):
    (tmp_path / "own_code.py").write_text(OWN)
    root = str(Path(__file__).parents[2])
    script = "import sys; sys.path.pop(0); sys.path.insert(0, sys.argv.pop(1)); from precision_lab.cli import main; "
    arguments = ["+technique.mine={_target_: own_code.Mine, sites: [norm_out], factor: 13}"]
    done = subprocess.run(
        [sys.executable, "-c", f"{script}sys.exit(main())", root, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 2, done.stderr
    assert "own_code.Mine raised LookupError" in done.stderr


def test_a_setting_of_another_command_is_not_its_own_suggestion(capsys):
    assert main(["device", "image.height=32"]) == 2
    err = capsys.readouterr().err
    assert "Unknown setting 'image.height'. Another model, experiment or command has it" in err
    assert "Did you mean" not in err
