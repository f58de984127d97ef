"""A project of someone else's: it installs the wheel and mlx-lm, and gates a language model with the plugin."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from precision_lab.device.environment import backend

ROOT = Path(__file__).parents[1]
PROJECT = Path(__file__).parent / "sample_project"

pytestmark = pytest.mark.slow


def installed(python, *requirements):
    """Installs with pip; skips the test if the package index cannot be reached."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(map(str, requirements))}: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An environment with the wheel and the sample's dependencies; what those need is borrowed from the running one."""
    folder = tmp_path_factory.mktemp("sample")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    done = subprocess.run(wheel, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"pip cannot build the wheel: {done.stderr.strip().splitlines()[-1]}")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    (Path(packages) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    dependencies = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    others = [requirement for requirement in dependencies if requirement != "precision-lab"]
    # forced: the running environment may have them too
    installed(python, "--no-deps", "--force-reinstall", *folder.glob("precision_lab-*.whl"), *others)
    installed(python, *dependencies)
    code = "import precision_lab, mlx_lm; print(precision_lab.__file__, mlx_lm.__file__)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert all(path.startswith(packages) for path in found.stdout.split())
    return python


@pytest.fixture
def run(python, tmp_path):
    """Runs the project's tests after a change of its model."""
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__", ".*"))

    def run(*arguments, change=""):
        if change:
            with (project / "language_model.py").open("a") as file:
                file.write(f"\n\ndef load(plain=load):\n    model = plain()\n    {change}\n    return model\n")
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)

    if backend() != "cpu":  # the ranges in the repository are a CPU's
        assert run("--update-activation-ranges").returncode == 0
    return run


def first_site(output):
    lines = output.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("site ")) + 1].split()[0]


def test_the_plain_model_passes(run):
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.parametrize(
    ("change", "guilty"),
    [
        ("model.layers[2].mlp.down_proj.weight *= 8", "model.layers.2.mlp.down_proj"),
        ("model.layers[1].self_attn.q_norm.weight *= 8", "model.layers.1.self_attn.q_norm"),
        ("model.layers[1].mlp.up_proj.set_dtype(mx.float32)", "model.layers.1.mlp.up_proj"),
        ("model.layers[3].self_attn.o_proj.weight[0, 0] = float('nan')", "model.layers.3.self_attn.o_proj"),
    ],
    ids=["weight", "norm", "dtype", "nan"],
)
def test_a_planted_regression_fails_and_names_the_layer(run, change, guilty):
    done = run("tests/test_language_model.py::test_prompt", change=change)
    assert done.returncode == 1, done.stdout + done.stderr
    assert first_site(done.stdout) == guilty
