"""Tests one mutant: the gate first, and the parity tests if the mutant passes the gate."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from experiments.mutation.mutants import Mutant
from precision_lab.record.address import split_port

GATE = "gate"
PARITY = "parity"
REFUSED = "refused"
TIMEOUT = "timeout"
SURVIVED = "survived"
PASSED = "passed the gate"
"""Not yet tried on the parity tests."""
STILLBORN = "stillborn"


class _Parity(NamedTuple):
    """The parity tests of a model, which compare it with diffusers and transformers.

    pattern: the file of a test, by its name; names: all tests; relevant: the tests that run first, by the stem of the
    mutated file, where that is not the test with the same name.
    """

    pattern: str
    names: tuple[str, ...]
    relevant: Mapping[str, tuple[str, ...]]

    def files(self, stem: str) -> list[str]:
        """All tests, those for the mutated file first, then those against exact roundings."""
        first, rest = ([self.pattern.format(name) for name in names] for names in (self._first(stem), self.names))
        return list(dict.fromkeys((*first, *_EXACT, *rest)))

    def _first(self, stem: str) -> tuple[str, ...]:
        return self.relevant.get(stem, (stem,))


_EXACT = ("tests/model/test_16_bit_rounding.py", "tests/model/test_norms_of_small_inputs.py")
"""Tests of all models against exact roundings."""
_TRANSFORMER = dict.fromkeys(("attention", "block", "modulation", "timestep", "segments", "prefix"), ("transformer",))
_PARITY = {
    "micro": _Parity(
        "tests/model/test_{}.py",
        ("rope", "scheduler", "sampler", "text_encoder", "vae", "transformer", "pipeline"),
        {
            **_TRANSFORMER,
            "layers": ("text_encoder", "vae", "transformer"),
            "language_body": ("text_encoder",),
            "rotary": ("rope", "transformer"),
            "vae_blocks": ("vae",),
            "autoencoder": ("vae",),
        },
    ),
    "micro_21": _Parity(
        "tests/model/qwen_image_21/test_{}_21.py",
        ("rope", "text_encoder", "vae", "transformer", "pipeline"),
        {**_TRANSFORMER, "vae_stages": ("vae",), "sampler": ("pipeline",)},
    ),
}


_WITHOUT_FIGURES = """
import sys
from precision_lab.device import blas

blas.preload()
from precision_lab import cli, report

report.write = lambda run, beside=None: run.path / "report.html"
sys.exit(cli.main())
"""
"""The command line without the figures of the report, which take most of the time of a short run."""


class Verdict(NamedTuple):
    """The verdict on a mutant. `by`: one of the words above; `evidence`: the sites, the test, or the exception."""

    by: str
    evidence: str
    seconds: float


class Sandbox:
    """A copy of the code in `folder`, in which one file at a time is mutated; settings are the gate's overrides."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        settings: Sequence[str],
        timeout: float,
        with_parity: bool = True,
        model: str = "micro",
    ):
        self.folder, self.timeout, self.with_parity = folder, timeout, with_parity
        self.settings = (f"model={model}", *settings)
        self.parity = _PARITY[model]
        ignored = shutil.ignore_patterns("__pycache__", "checkpoints")
        for name in ("precision_lab", "conf", "tests"):
            shutil.copytree(root / name, folder / name, ignore=ignored)
        shutil.copy(root / "pyproject.toml", folder)
        (folder / "precision_lab" / "checkpoints").symlink_to(root / "precision_lab" / "checkpoints")

    def learn(self) -> float:
        """Writes the baseline of the unmutated code and runs the gate once; returns the seconds of that run.

        Raises RuntimeError if the gate or a parity test fails on the code from which the baseline was learned.
        """
        if self.with_parity and (failed := self._failed_parity_test("transformer")):
            raise RuntimeError(f"the unchanged code fails {failed}")
        for extra in (["gate.update=true"], []):
            begun = time.perf_counter()
            done, _ = self._gate(extra)
            if done.returncode:
                raise RuntimeError(f"the gate does not pass the unchanged code:\n{done.stdout}\n{done.stderr}")
        return time.perf_counter() - begun

    def judge(self, mutant: Mutant, passed_gate: bool = False) -> Verdict:
        """Runs the gate, unless the mutant has passed it, and then the parity tests, until one fails."""
        file = self.folder / mutant.file
        text = file.read_text(encoding="utf-8")
        begun = time.perf_counter()
        try:
            self._write(file, mutant.applied(text))
            by, evidence = self._tried(mutant, passed_gate)
        except subprocess.TimeoutExpired:
            by, evidence = TIMEOUT, f"after {self.timeout:.0f} s"
        finally:
            self._write(file, text)
        return Verdict(by, evidence, round(time.perf_counter() - begun, 1))

    def _tried(self, mutant: Mutant, passed_gate: bool) -> tuple[str, str]:
        if not passed_gate:
            done, record = self._gate([])
            if record and not record["passed"]:
                return GATE, _named(record)
            if done.returncode == 2:
                return REFUSED, done.stderr.strip().splitlines()[-1]
            if done.returncode:
                return STILLBORN, (done.stderr or done.stdout).strip().splitlines()[-1]
        if not self.with_parity:
            return PASSED, ""
        failed = self._failed_parity_test(Path(mutant.file).stem)
        return (PARITY, failed) if failed else (SURVIVED, "")

    def _failed_parity_test(self, stem: str) -> str | None:
        """The first failing parity test; those for the file `stem` run first. Raises RuntimeError if none ran."""
        alone = ("-o", "addopts=", "-m", "not slow")  # in this process: the options of the project need plugins
        done = self._python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *alone, *self.parity.files(stem))
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        if done.returncode and not failed:
            raise RuntimeError(f"the parity tests cannot run:\n{done.stdout}\n{done.stderr}")
        return failed[1] if failed else None

    def _gate(self, extra: Sequence[str]) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        """Runs the gate; returns the finished process, and the content of gate.json if it exists."""
        out = self.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        done = self._python(
            *("-c", _WITHOUT_FIGURES, "gate", f"gate.baseline={self.folder}/baseline.json", f"out={out}"),
            *self.settings,
            *extra,
        )
        with suppress(OSError):
            return done, json.loads((out / "gate.json").read_text())
        return done, {}

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "OPENBLAS_NUM_THREADS": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # they take longer to import than some tests to run
            "PYTEST_ADDOPTS": "",  # of whoever runs the study: a plugin of theirs cannot be imported here
        }
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=self.timeout
        )

    @staticmethod
    def _write(file: Path, text: str) -> None:
        file.write_text(text, encoding="utf-8")
        # Python checks bytecode only against the size and the whole seconds of its source
        for stale in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            stale.unlink()


def _named(record: dict[str, Any]) -> str:
    """The first three sites in the gate's report, each with its first metric."""
    sites: dict[str, str] = {}
    for violation in record["violations"]:
        site, _ = split_port(violation["address"])
        sites.setdefault(site, violation["metric"])
    return ", ".join(f"{site} {metric}" for site, metric in list(sites.items())[:3])
