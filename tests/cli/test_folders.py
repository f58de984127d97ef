"""The default folders of commands: each belongs to one command, however many start at once, and none is left empty."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from precision_lab.cli import folders, main
from precision_lab.cli.folders import claimed
from precision_lab.errors import InputError
from tests.spread import thinned

AT_ONCE = 8
NOTHING = SimpleNamespace(entry=SimpleNamespace(sketches=(), device="here", mlx="0"), match="exact")
QUICK = (
    *("sampler.steps=1", "image.height=32", "image.width=32", "prompts=[a]", "seeds=[0]", "workers=1", "probe=[range]"),
    *("latency.min_rounds=0", "latency.max_rounds=0", "pinned.record=false", "gate.learn.prompts=[]"),
    *("gate.learn.seeds=[]", "drift.sites=[norm_out]", "probe.range.sites=[norm_out,proj_out]"),
)


def claim_often(path, barrier, found):
    barrier.wait()
    for _ in range(5):
        with claimed(path) as folder:
            (folder / "result").touch(exist_ok=False)
        found.put(folder.name)


@pytest.fixture
def frozen(monkeypatch):
    """Every command starts in the same second."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    monkeypatch.setattr(folders, "datetime", Clock)


def test_processes_that_start_at_once_get_different_folders(tmp_path):
    spawning = multiprocessing.get_context("spawn")
    barrier, found = spawning.Barrier(3), spawning.Queue()
    path = tmp_path / "results" / "runs" / "x" / "now"
    processes = [spawning.Process(target=claim_often, args=(path, barrier, found)) for _ in range(3)]
    for process in processes:
        process.start()
    names = {found.get(timeout=60) for _ in range(15)}
    for process in processes:
        process.join()
    assert names == {"now", *(f"now-{number}" for number in range(2, 16))}


def test_empty_folders_are_removed_while_others_claim_theirs(tmp_path):
    barrier = threading.Barrier(AT_ONCE)

    def claim(number):
        barrier.wait()
        for _ in range(50):
            with claimed(tmp_path / "a" / "b" / "c") as folder:
                assert folder.is_dir()
                (folder / "mine").write_text(str(number))
                assert (folder / "mine").read_text() == str(number)
                (folder / "mine").unlink()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(claim, range(AT_ONCE)))
    assert not list(tmp_path.glob("a/b/c*"))


def test_a_folder_above_that_is_a_file_is_named(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match="results/x cannot be written"), claimed(tmp_path / "results" / "x"):
        pass
    (tmp_path / "results").unlink()
    (tmp_path / "results").symlink_to("nowhere")
    with pytest.raises(InputError, match="cannot be written"), claimed(tmp_path / "results" / "x"):
        pass


@pytest.mark.parametrize(
    ("command", "experiment"),
    thinned(
        [
            (["run"], "custom"),
            (["gate", "gate.update=true", "gate.baseline=baseline.json"], "gate"),
            (["sensitivity"], "sensitivity"),
            (["search", "budget.bits=5"], "search"),
            (["search", "strategy=scales"], "scales"),
            (["search", "strategy=fp8_scales"], "fp8_scales"),
            (["culprits"], "culprits"),
        ],
        keep=3,
    ),
)
def test_the_second_command_of_a_second_writes_beside_the_first(
    monkeypatch, tmp_path, frozen, small_checkpoint, command, experiment
):
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "results" / "runs" / experiment / "20260102T030405Z"
    taken.mkdir(parents=True)
    seen = []

    def task(module, config, command):
        seen.append(config.out)
        Path(config.out, "result").touch(exist_ok=False)
        return 0

    monkeypatch.setattr("precision_lab.cli._task", task)
    assert main([*command, f"model.path={small_checkpoint}"]) == 0
    assert main([*command, f"model.path={small_checkpoint}"]) == 0
    expected = [str(taken.relative_to(tmp_path)) + end for end in ("-2", "-3")]
    assert seen == expected


def test_the_second_device_of_a_second_writes_beside_the_first(monkeypatch, tmp_path, frozen):
    from precision_lab.cli import device

    monkeypatch.chdir(tmp_path)
    outs = []
    monkeypatch.setattr(device, "_measure", lambda out, *rest: outs.append(out) or int((out / "x").write_text("")))
    assert [main(["device"]) for _ in range(2)] == [0, 0]
    assert [out.name for out in outs] == ["20260102T030405Z", "20260102T030405Z-2"]


def test_a_run_that_is_refused_leaves_no_default_folder(monkeypatch, tmp_path, small_checkpoint):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "seeds=[-1]", f"model.path={small_checkpoint}"]) == 2
    assert main(["prove", f"model.path={small_checkpoint}"]) == 2
    assert main(["gate", "run=nowhere"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_gate_whose_folder_another_takes_judges_nothing(monkeypatch, tmp_path, small_checkpoint, capsys):
    """The other run writes its manifest after this gate has looked at the folder, and before it has the lock."""
    from precision_lab.lab import folder

    monkeypatch.chdir(tmp_path)

    def taken(path):
        path.mkdir()
        (path / "manifest.json").write_text("{}")
        raise InputError(f"{path} is being written by process 1")

    monkeypatch.setattr(folder, "check_free", taken)
    given = ("+exp=plain", *QUICK, f"model.path={small_checkpoint}", "out=shared")
    monkeypatch.setattr("precision_lab.cli.gate._choose", lambda *given: (Path("x"), NOTHING))
    assert main(["gate", *given]) == 2
    assert capsys.readouterr().err == "shared is being written by process 1\n"
    assert [path.name for path in Path("shared").iterdir()] == ["manifest.json"]


@pytest.mark.slow
def test_sweeps_of_one_second_have_folders_of_their_own(monkeypatch, tmp_path, small_checkpoint):
    monkeypatch.chdir(tmp_path)
    seen = []

    def task(module, config, command):
        seen.append(config.out)
        Path(config.out).mkdir()
        Path(config.out, "result").touch(exist_ok=False)
        return 0

    monkeypatch.setattr("precision_lab.cli._task", task)
    given = ["-m", f"model.path={small_checkpoint}", "dtype=float16,bfloat16", "hydra.sweep.dir='s/${now:%Y}'"]
    year = f"{datetime.now(UTC):%Y}"
    assert [main(given), main(given)] == [0, 0]
    assert seen == [f"s/{year}/0", f"s/{year}/1", f"s/{year}-2/0", f"s/{year}-2/1"]
    assert main([*given[:-1], f"hydra.sweep.dir=s/{year}"]) == 2
