"""The gate on a small checkpoint: one baseline, learned from the code as it is, and one short run a test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from precision_lab.cli import main

SETTINGS = (
    *("+exp=gate", "sampler.steps=2", "pinned.steps=3", "image.height=32", "image.width=48"),
    *("latency.min_rounds=0", "latency.max_rounds=0", "gate.learn.prompts=[two small stars]", "gate.learn.seeds=[1]"),
)


class Verdict(NamedTuple):
    """The exit code of a gate, and gate.json, which one that learns does not write."""

    code: int
    record: dict[str, Any]

    @property
    def first_three(self) -> list[str]:
        """The sites on the first three lines that the gate prints: one a site, port and variant."""
        address = ("variant", "component", "site", "port")
        lines = dict.fromkeys(tuple(v[key] for key in address) for v in self.record["violations"])
        return [f"{component}:{site}" for _, component, site, _ in list(lines)[:3]]

    @property
    def metrics(self) -> set[str]:
        """All metrics that object."""
        return {violation["metric"] for violation in self.record["violations"]}


Gate = Callable[..., Verdict]


def _learned(folder: Path, *model: str) -> Gate:
    """Runs `python -m precision_lab gate` with further overrides, in this process, with a baseline that it learned."""

    def run(*overrides: str, prompts: str = "a red circle", seeds: str = "0") -> Verdict:
        out = folder / str(len(list(folder.iterdir())))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("precision_lab.report.write", lambda run, beside=None: run.path / "report.html")
            code = main(
                [
                    *("gate", *SETTINGS, *model, f"out={out}"),
                    *(f"gate.baseline={folder}/baseline.json", f"prompts=[{prompts}]", f"seeds=[{seeds}]"),
                    *overrides,
                ]
            )
        record = out / "gate.json"
        return Verdict(code, json.loads(record.read_text()) if record.exists() else {})

    assert run("gate.update=true").code == 0
    return run


@pytest.fixture(scope="session")
def gate(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """The gate of Qwen-Image 1.x."""
    return _learned(tmp_path_factory.mktemp("gate"), f"model.path={small_checkpoint}")


@pytest.fixture(scope="session")
def gate_21(small_checkpoint_21: Path, tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """The gate of Qwen-Image-2.1."""
    model = "model=micro_21", f"model.path={small_checkpoint_21}", "image.width=64"
    return _learned(tmp_path_factory.mktemp("gate_21"), *model)
