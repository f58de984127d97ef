"""Every code block of README.md and of the guide runs as it is printed: page by page, in order, in one folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from precision_lab.cli import main
from tests.page_blocks import PAGES, ROOT, Block, blocks
from tests.page_standins import StandIns, quick

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, small_checkpoint, small_checkpoint_21):
    return StandIns(tmp_path_factory.mktemp("stand_ins"), small_checkpoint, small_checkpoint_21)


class Reader:
    """Somebody who follows a page: a folder, and the names that its Python blocks define."""

    def __init__(self, folder: Path, stand_ins: StandIns):
        self.folder, self.stand_ins = folder, stand_ins
        self.names: dict[str, object] = {"__name__": "page"}

    def follow(self, block: Block) -> None:
        settings = self.prepared(block) if block.kind == "with" else []
        if block.file and block.kind not in ("not run", "tested"):
            file = self.folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.language == "sh":
            for line in block.lines:  # one after the other: a command may need what those before it leave
                for command in commands_of(line):
                    composes(command, block)
                if not block.kind or block.kind == "with":
                    self.run(line, block, settings)
        elif block.kind in ("not run", "tested"):
            assert block.language != "yaml" or yaml.safe_load(block.text) is not None
        elif block.language == "python":
            exec(compile(block.text, block.where, "exec"), self.names)
        else:
            assert block.language not in ("yaml",), f"{block.where}: a first line '# FILE.yaml' says where it is saved"

    def prepared(self, block: Block) -> list[str]:
        """Makes the stand-ins of a block; returns its other words, which are overrides."""
        settings = []
        for word in block.value.split():
            name, _, kind = word.partition("=")
            if kind in StandIns.kinds():
                self.stand_ins.place(kind, self.folder / name)
            else:
                settings.append(word)
        return settings

    def run(self, line: str, block: Block, settings: list[str]) -> None:
        (command,) = commands_of(line) or [None]
        by_the_shell = any(mark in line for mark in (" > ", " | ", " && "))
        if command is None or by_the_shell or "tf32=" in line:  # a process reads TF32 once
            environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"}
            environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=self.folder, env=environment, check=True)
            return
        name = command[0] if command and "=" not in command[0] and command[0][0] not in "-+" else "run"
        task = next((f"{name} {word}" for word in command if word.startswith("strategy=")), name)
        task = next(
            (f"{name} {key}" for word in command if (key := word.partition("=")[0]) in ("dump", "dump_inputs")), task
        )
        words = [*quick(name, task, command, self.stand_ins.model), *settings]
        code = main(words)
        expected = 1 if "the exit code is 1" in line else 0
        assert code == expected, f"{block.where}: {line}\nran as {' '.join(words)}\nexit code {code}"


def commands_of(line: str) -> list[list[str]]:
    return Block("", 0, "sh", line, "", "").commands


def composes(command: list[str], block: Block) -> None:
    """The printed overrides compose with the configurations, unless these come from a folder that a search leaves."""
    if "--config-dir" in command and not Path(command[command.index("--config-dir") + 1]).is_dir():
        assert block.kind in ("not run", "tested"), block.where
    elif command[:1] not in (["--help"], ["device"]) and "-m" not in command:  # Hydra shows no configuration of a sweep
        assert main([*command, "--cfg", "job"]) == 0, f"{block.where}: {' '.join(command)} does not compose"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, stand_ins, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    reader = Reader(tmp_path, stand_ins)
    try:
        for block in blocks(page):
            reader.follow(block)
    finally:  # modules of this page's own files
        for name in set(sys.modules) - known:
            if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]
