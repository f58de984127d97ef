"""Damaged run folders: every command that reads one names the file in a line, or states a result."""

import random
import shutil

import pytest

from precision_lab import report
from precision_lab.cli import main
from precision_lab.lab import run as lab_run
from precision_lab.record.files import File
from precision_lab.report.figures import style
from tests.malformed.damage import damage
from tests.malformed.harness import assert_stated, call
from tests.spread import thinned

SMALL = (
    *("+exp=baseline", "experiment=small", "only=[baseline]", "sampler.steps=1", "image.height=32", "image.width=48"),
    *("prompts=[a red circle]", "seeds=[0]", "latency.min_rounds=2", "latency.max_rounds=2", "latency.warmup_rounds=0"),
    *("probe.range.sites=[transformer_blocks.*,norm_out,proj_out,pipeline:euler_step]", "pinned.steps=1"),
    *(
        "drift.sites=[norm_out,transformer_blocks.*,pipeline:euler_step]",
        "pinned.sites=[transformer_blocks.*,norm_out]",
    ),
    *("pinned.cases.tall=null", "pinned.cases.wide.height=32", "pinned.cases.wide.width=48"),
)
UNTIMED = ("gate.latency_margin=1000", "gate.latency_ratio_margin=1000")
COMMANDS = ("report", "compare", "gate", "resume")


@pytest.fixture(scope="module")
def folders(small_checkpoint, tmp_path_factory):
    """A working folder with a baseline, a complete run and an interrupted one; and how the latter was started."""
    folder = tmp_path_factory.mktemp("sound")
    start = ("run", *SMALL, f"model.path={small_checkpoint}")
    write = File.write

    def interrupting(file, run):
        if file.path.startswith("activations/part-baseline"):
            raise KeyboardInterrupt
        write(file, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(report, "write", lambda run, beside=None: run.path / "report.html")
        learn = ("gate.update=true", "gate.learn.prompts=[a blue star]", "gate.learn.seeds=[1]")
        assert main(["gate", *start[1:], *learn, "out=learned"]) == 0
        assert main(["gate", *start[1:], *UNTIMED, "out=complete"]) == 0
        patch.setattr(File, "write", interrupting)
        assert main([*start, "out=interrupted"]) == 130
    shutil.rmtree(folder / "learned")
    return folder, start


@pytest.fixture
def attempt(folders, tmp_path, monkeypatch):
    """Damages a copy of a folder, and calls a command on it."""
    sound, start = folders

    # a resumed run whose files are accepted ends there: what it computes is not the point
    monkeypatch.setattr(lab_run.Execution, "_run", lambda self: None)

    def attempt(seed):
        rng = random.Random(seed)
        command = COMMANDS[seed % len(COMMANDS)]
        name = "interrupted" if command == "resume" or (command == "report" and rng.random() < 0.4) else "complete"
        work = shutil.copytree(sound, tmp_path / str(seed))
        done = damage(work / name, rng)
        runs = ["runs=[complete,sound]", "runs=[sound,complete]"]
        if command == "compare":
            shutil.copytree(sound / "complete", work / "sound")
        arguments = {
            "report": ["report", f"run={name}"],
            "compare": ["compare", rng.choice(runs)],
            "gate": ["gate", "run=complete", "gate.history=null", *UNTIMED],
            "resume": [*start, "out=interrupted", "resume=true"],
        }[command]
        outcome = call(arguments, work)
        shutil.rmtree(work)
        said = f"seed {seed}: {command}, {done.what}"
        assert_stated(outcome, None, may_leave=True)
        if outcome.code == 2:
            assert any(culprit in outcome.err for culprit in done.culprits), f"{said}: {outcome.err}"
        assert not (work / "pwned").exists()

    return attempt


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made but not rendered, which takes most of the time."""

    def save(drawing, folder):
        files = [folder / f"{drawing.name}.{kind}" for kind in ("png", "svg")]
        for file in files:
            file.touch()
        return tuple(files)

    monkeypatch.setattr(style, "save", save)


@pytest.mark.parametrize("four", thinned(range(10), keep=1))
def test_a_damaged_folder_is_named_or_has_a_result(attempt, unrendered, four):
    """Each four is a folder for every command."""
    for seed in range(4 * four, 4 * four + 4):
        attempt(seed)


@pytest.mark.slow
@pytest.mark.parametrize("decade", range(100, 125))
def test_more_of_them(attempt, decade):
    for seed in range(10 * decade, 10 * decade + 10):
        attempt(seed)


@pytest.mark.slow
def test_sound_folders_are_accepted(folders, attempt, unrendered, tmp_path):
    """What the others differ from."""
    sound, start = folders
    work = shutil.copytree(sound, tmp_path / "work")
    for arguments, code in (
        (["report", "run=complete"], 0),
        (["report", "run=interrupted"], 0),
        (["compare", "runs=[complete,interrupted]"], 0),
        (["gate", "run=complete", "gate.history=null", *UNTIMED], 0),
        ([*start, "out=interrupted", "resume=true"], 0),
    ):
        outcome = call(arguments, work)
        assert (outcome.code, outcome.err, outcome.raised) == (code, "", ""), arguments
