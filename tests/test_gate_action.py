"""`.github/actions/gate`: a valid action, whose shell steps judge a small model and pass the exit code on."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.page_blocks import ROOT, blocks

ACTION = ROOT / ".github" / "actions" / "gate" / "action.yml"
PAGE = ROOT / "experiments" / "guide" / "own_model.md"
QUICK = "prompts=[two plus two]\nlatency.min_rounds=0\nlatency.max_rounds=0\ngate.history=null"


@pytest.fixture(scope="module")
def action():
    return yaml.safe_load(ACTION.read_text())


def steps(action):
    return {step["id"]: step for step in action["runs"]["steps"] if "run" in step}


def test_it_is_an_action_by_the_published_schema():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions", str(ACTION)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_its_shell_is_sound_and_takes_inputs_as_variables(action, tmp_path):
    for name, step in steps(action).items():
        assert "${{" not in step["run"], "an input that becomes text of a script can run code"
        script = tmp_path / f"{name}.sh"
        script.write_text(f"set -eo pipefail\nexport {' '.join(step['env'])}\n{step['run']}")
        shellcheck = [str(Path(sys.executable).parent / "shellcheck"), "--shell=bash", str(script)]
        done = subprocess.run(shellcheck, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_every_input_is_used_and_every_used_one_is_declared(action):
    used = set(re.findall(r"inputs\.([\w-]+)", yaml.safe_dump(action["runs"])))
    assert used == set(action["inputs"])
    assert all(each["description"] and "default" in each for each in action["inputs"].values())


def test_the_page_states_all_inputs_and_uses_what_exists(action):
    page = (PAGE.parent / "gate.md").read_text()
    section = page.partition("## In CI")[2].partition("\n## ")[0]
    (job,) = [block for block in blocks(PAGE.parent / "gate.md") if "uses: precision-lab/" in block.text]
    (step,) = [each for each in yaml.safe_load(job.text) if "/.github/actions/gate@" in each["uses"]]
    assert set(step["with"]) <= set(action["inputs"])
    for name in action["inputs"]:
        assert f"`{name}`" in section, name


class Runner:
    """What GitHub does with the shell steps of a composite action, in a folder on this machine."""

    def __init__(self, action, folder: Path):
        self.action, self.folder = action, folder
        self.files = {name: folder / name for name in ("output", "summary", "pip")}
        self.steps: dict[str, dict[str, str]] = {}
        stub = folder / "bin" / "python3"  # `-m venv` makes this python, whose `-m pip` only notes its arguments
        stub.parent.mkdir()
        python = f'#!/bin/bash\nif [ "$2" = pip ]; then printf "%s\\n" "$@" > {self.files["pip"]}; exit; fi\n'
        python += f'exec {sys.executable} "$@"\n'
        stub.write_text(
            f'#!/bin/bash\nmkdir -p "$3/bin"\ncat > "$3/bin/python" <<"END"\n{python}END\nchmod +x "$3/bin/python"\n'
        )
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)

    def value(self, text: str, inputs: dict[str, str]) -> str:
        known = {f"inputs.{name}": inputs.get(name, each["default"]) for name, each in self.action["inputs"].items()}
        known |= {"github.action_path": str(ACTION.parent), "runner.temp": str(self.folder), "runner.os": "Linux"}
        known |= {f"steps.{step}.outputs.{k}": v for step, outputs in self.steps.items() for k, v in outputs.items()}
        return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda match: known[match[1]], text)

    def run(self, **given: str) -> int:
        """The exit code of the first step that fails, or 0."""
        inputs = {name.replace("_", "-"): value for name, value in given.items()}
        for name, step in steps(self.action).items():
            self.files["output"].write_text("")
            environment = {key: self.value(value, inputs) for key, value in step["env"].items()}
            environment |= {
                "GITHUB_OUTPUT": str(self.files["output"]),
                "GITHUB_STEP_SUMMARY": str(self.files["summary"]),
            }
            environment["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
            command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            here = self.folder / self.value(step["working-directory"], inputs)
            done = subprocess.run(command, cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
            written = self.files["output"].read_text().splitlines()
            self.steps[name] = dict(line.split("=", 1) for line in written)
            if done.returncode:
                return done.returncode
        return 0


@pytest.mark.slow
def test_it_passes_fails_and_refuses(action, tmp_path):
    """With the page's own model: learned, unchanged, changed by a tenth of one branch, and without a baseline."""
    runner = Runner(action, tmp_path)
    project = tmp_path / "a project"
    subject, of_subject = [block.text for block in blocks(PAGE) if block.language in ("python", "yaml")][:2]
    (project / "conf" / "model").mkdir(parents=True)
    (project / "chatter.py").write_text(subject)
    (project / "conf" / "model" / "chatter.yaml").write_text(of_subject)
    given = {
        "working_directory": "a project",
        "config_dir": "conf",
        "baseline": "base.json",
        "extras": "cpu,lm",
        "install": "--quiet\nmy package",
    }
    overrides = f"model=chatter\n+exp=plain\n{QUICK}"
    assert runner.run(overrides=f"{overrides}\ngate.update=true", out="learned", **given) == 0
    assert runner.files["pip"].read_text().splitlines()[2:] == ["install", f"{ROOT}[cpu,lm]", "--quiet", "my package"]
    assert runner.run(overrides=overrides, **given) == 0
    assert runner.steps["gate"] == {"exit-code": "0", "report": "results/gate/report.html"}
    assert "## Gate plain on cpu: passed" in runner.files["summary"].read_text()
    assert (project / "results" / "gate" / "report.html").is_file()

    (project / "chatter.py").write_text(subject.replace("return x + self.mlp", "return x + 1.1 * self.mlp"))
    assert runner.run(overrides=overrides, out="results/changed", **given) == 1
    assert runner.steps["gate"]["exit-code"] == "1"
    assert "layers.0" in runner.files["summary"].read_text().partition("failed")[2]

    assert runner.run(overrides=overrides, out="results/none", **{**given, "baseline": "no such.json"}) == 2
    assert "could not judge (exit code 2)" in runner.files["summary"].read_text()
    assert "no such.json" in runner.files["summary"].read_text()
