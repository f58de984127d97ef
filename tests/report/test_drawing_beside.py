"""Figures that another process draws are the same bytes, in the same places, and its faults are this process's."""

import os
import subprocess
import sys

import psutil
import pytest

from precision_lab.errors import InputError
from precision_lab.record import beside as beside_module
from precision_lab.record.beside import process_beside
from precision_lab.report import drawing, page, write
from precision_lab.report.figures import claim_forest, contributions, latency
from precision_lab.report.view import View
from tests.report.conftest import SMALL
from tests.report.fabricated_run import fabricate


def refused(view):
    raise InputError(f"planted, in another process: {os.getpid() != int(os.environ['PLANTED_IN'])}")


def files(run):
    return {path.name: path.read_bytes() for path in (run / "report.html", *(run / "figures").iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("beside") / "run", **(SMALL | {"blocks": 2, "seeds": (0,)}))


@pytest.mark.slow
def test_a_second_process_leaves_the_same_bytes(folder, monkeypatch):
    monkeypatch.setattr(beside_module, "LARGE", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(page, "FIGURES", {"growth": (contributions.draw,), "time": (latency.draw, claim_forest.draw)})
    write(folder)
    alone = files(folder)
    for path in (folder / "figures").iterdir():
        path.unlink()
    monkeypatch.setenv("PLANTED_IN", str(os.getpid()))
    with process_beside(folder, "precision_lab.report") as beside:
        assert beside is not None
        there = beside.submit(drawing._drawn_there, folder / "figures", folder, claim_forest.draw).result()
        assert there.uri in alone["report.html"].decode()
        write(folder, beside)
        assert files(folder) == alone
        draws = [latency.draw, *[claim_forest.draw] * 3, refused]
        monkeypatch.setattr(beside_module, "_either", lambda here, item, future: future.result())
        with pytest.raises(InputError, match="planted, in another process: True"):
            list(drawing.figures(View.open(folder), draws, folder / "figures", beside))
    assert beside._processes is None, "the process is gone"


OWNER = """
import sys, time
from pathlib import Path
from precision_lab.record import beside

if __name__ == "__main__":
    beside.LARGE = 1
    with beside.process_beside(Path(sys.argv[1])) as pool:
        print(*pool._processes, flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_the_second_process_ends_with_a_killed_one(folder, tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    with subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, text=True) as owner:
        beside = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    beside.wait(30)


@pytest.mark.parametrize(("least", "cores"), [(10**9, 2), (1, 1)])
def test_a_small_run_and_a_single_core_are_drawn_here(folder, monkeypatch, least, cores):
    monkeypatch.setattr(beside_module, "LARGE", least)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    with process_beside(folder) as beside:
        assert beside is None
