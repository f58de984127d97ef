"""The folder of a sweep: which jobs it has, in which order, and why some have no run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from precision_lab.errors import InputError
from precision_lab.record import sweep
from precision_lab.record.sweep import JobError
from tests.fabricated import manifest

PYTHON = ("python", "-m", "precision_lab")


def job(folder: Path, *overrides: str, **changed) -> Path:
    """A run folder with nothing but its manifest."""
    folder.mkdir(parents=True)
    replace(manifest(), command=[*PYTHON, "run", *overrides], **changed).write(folder)
    return folder


def test_jobs_are_listed_in_natural_order_with_their_own_overrides(tmp_path):
    for number in (10, 2):
        job(tmp_path / f"{number}", "+exp=plain", f"seeds=[{number}]", f"out={tmp_path}/{number}")
    (tmp_path / "figures").mkdir()
    (tmp_path / sweep.PLAN).touch()
    jobs = sweep.read(tmp_path, {"10": ["seeds=[10]"], "11": ["seeds=[11]"]})
    assert [job.name for job in jobs] == ["2", "10", "11"]
    assert [job.overrides["seeds"] for job in jobs] == ["[2]", "[10]", "[11]"]
    assert jobs[0].overrides["exp"] == "plain"
    assert sweep.differing([job.overrides for job in jobs[:2]]) == [{"seeds": "[2]"}, {"seeds": "[10]"}]


def test_a_run_that_states_the_command_of_the_whole_sweep_gets_the_planned_overrides(tmp_path):
    job(tmp_path / "0", "-m", "dtype=bfloat16,float16")
    job(tmp_path / "1", "--multirun", "dtype=bfloat16,float16")
    jobs = sweep.read(tmp_path, {"0": ["dtype=bfloat16"], "1": ["dtype=float16"]})
    assert [job.overrides for job in jobs] == [{"dtype": "bfloat16"}, {"dtype": "float16"}]


def test_the_reason_for_a_job_without_a_complete_run(tmp_path):
    job(tmp_path / "0")
    job(tmp_path / "1", status="interrupted", finished=None)
    failed = job(tmp_path / "2", status="failed", finished=None)
    for folder in (failed, tmp_path / "3"):
        JobError(2, "dtype is 'bf17'", ["dtype=bf17"]).write(folder)
    done, interrupted, broken, refused, absent = sweep.read(tmp_path, {"4": ["dtype=float16"]})
    assert done.trouble == ""
    assert interrupted.trouble.startswith("interrupted: this run was not finished")
    assert broken.trouble == "failed, exit code 2: dtype is 'bf17'"
    assert refused.trouble == "exit code 2: dtype is 'bf17'"
    assert refused.overrides == {"dtype": "bf17"}
    assert refused.run is None
    assert absent.trouble.startswith("no run yet")


def test_an_error_that_a_later_run_has_mended_is_none(tmp_path):
    JobError(2, "a mistake").write(job(tmp_path / "0"))
    assert sweep.read(tmp_path, {})[0].trouble == ""


def test_runs_elsewhere(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (found,) = sweep.read(folder, {}, {"run-0": job(tmp_path / "run-0")})
    assert (found.name, found.folder) == ("run-0", tmp_path / "run-0")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: shutil.rmtree(folder / "0"), "there is no run in a folder below it"),
        (lambda folder: (folder / "0" / "manifest.json").write_text("{"), "0/manifest.json is not strict JSON"),
        (lambda folder: (folder / "1" / "error.json").write_text("[]"), "1/error.json has schema_version"),
    ],
    ids=["absent", "no run", "manifest", "error"],
)
def test_a_damaged_folder_is_named(tmp_path, damage, message):
    folder = tmp_path / "sweep"
    job(folder / "0")
    JobError(2, "a mistake").write(folder / "1")
    damage(folder)
    with pytest.raises(InputError, match=message):
        sweep.read(folder, {})


def test_an_error_is_strict_json(tmp_path):
    JobError(3, "a fault\n", ["a=1"]).write(tmp_path / "0")
    assert json.loads((tmp_path / "0" / "error.json").read_text()) == {
        "schema_version": 2,
        "exit_code": 3,
        "message": "a fault\n",
        "overrides": ["a=1"],
    }
