"""Completion: the words by themselves, and the scripts as the shells run them."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

import pytest

from precision_lab import cli
from precision_lab.cli import meanings
from precision_lab.cli.completion import SCRIPTS, completions
from precision_lab.cli.paths import options

SHELLS = {"bash": "bash", "zsh": "zsh", "fish": "fish"}


def words(*given):
    return list(completions(given))


def test_the_first_word_is_a_command_or_a_setting():
    found = words("")
    assert {*cli.COMMANDS, cli.COMPLETION, "dtype=", "latency.", "+exp=", "technique="} <= set(found)
    assert words("gat") == ["gate"]
    assert words("gate", "gat") == ["gate."]
    assert words("gate", "gate.upd") == ["gate.update="]


@pytest.mark.parametrize(
    ("override", "group"),
    [("technique=", "technique"), ("+exp=", "exp"), ("model=", "model"), ("probe=", "probe"), ("+sampler=", "sampler")],
)
def test_every_option_of_a_group_completes_its_override(override, group):
    for name in options(group):
        assert f"{override}{name}" in words(f"{override}{name[:-1]}")
    assert words(override) == [f"{override}{name}" for name in options(group)]


def test_lists_go_on_after_a_comma_without_what_they_have():
    found = words("technique=[ffn_scaling,ffn")
    assert found == ["technique=[ffn_scaling,ffn_scaling_exact"]
    assert "candidate=[nvfp4" in words("search", "candidate=[nv")
    assert words("+exp=findings", "only=[baseline,float") == ["only=[baseline,float16"]


def test_values_that_a_meaning_lists():
    assert words("dtype=") == ["dtype=bfloat16", "dtype=float16", "dtype=float32"]
    assert words("search", "strategy=fp") == ["search", "strategy=fp8_scales"][1:]
    assert words("drift.teacher.mode=s") == ["drift.teacher.mode=sampled"]
    assert words("gate", "gate.update=t") == ["gate.update=true"]
    assert words("model=mlx_lm", "sampler.") == ["sampler.steps="]
    assert words("out=") == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_setting_of_a_command_can_be_reached(name):
    root = meanings.root(cli.COMMANDS[name][1])
    for key, setting in root.settings.items():
        if setting.meaning:
            parts = key.split(".")
            for at in range(1, len(parts)):
                assert f"{'.'.join(parts[:at])}." in words(name, ".".join(parts[:at]))
            assert {f"{key}=", f"{key}."} & set(words(name, key))


def test_odd_words_complete_to_nothing_and_raise_nothing(capsys):
    for odd in ("=", "a=b=c", "[[", "+", "~", "..", "größe=", "a" * 5000, "@", "technique=[,", "only={"):
        words("gate", odd)
    assert cli.main(["completion", "words"]) == 0
    assert "gate\t" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "none"), (["bsh"], "Did you mean bash"), (["bash", "zsh"], "'bash zsh'"), (["shell=bash"], "shell=bash")],
)
def test_another_shell_is_refused(arguments, said, capsys):
    assert cli.main(["completion", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert said in err


@pytest.fixture
def program(tmp_path, monkeypatch):
    """`precision-lab` on the path, as pip would install it, and the scripts in the same folder."""
    file = tmp_path / "precision-lab"
    file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m precision_lab "$@"\n')
    file.chmod(0o755)
    for shell, text in SCRIPTS.items():
        (tmp_path / f"script.{shell}").write_text(text)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def in_bash(folder, line):
    code = 'source "$0"; COMP_LINE=$1 COMP_POINT=${#1} _precision_lab; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", code, str(folder / "script.bash"), line], capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.split()


def test_bash_runs_the_script(program):
    """Readline breaks words at = and :, so that a reply is what comes after the last of these."""
    assert in_bash(program, "precision-lab technique=ffn_scaling_") == ["ffn_scaling_exact"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("precision-lab gat", ["gate"]),
        ("precision-lab gate gate.upd", ["gate.update="]),
        ("precision-lab gate gate.update=", ["true", "false"]),
        ("precision-lab technique=[ffn_scaling,ffn", ["[ffn_scaling,ffn_scaling_exact"]),
        ("precision-lab 'technique=[ffn_scaling,ffn", ["technique=[ffn_scaling,ffn_scaling_exact"]),
        ("precision-lab +exp=findings only=[fl", ["[float16"]),
        ("precision-lab culprits candidate@noise=reord", ["reordered_sums"]),
        ("precision-lab completion ", ["bash", "zsh", "fish"]),
        ("precision-lab out=", []),
    ],
)
def test_bash_completes(program, line, replies):
    assert in_bash(program, line) == replies


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_person_at_a_terminal_completes_a_word(program, shell):
    """The shell itself, on a terminal of its own, with the key Tab."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    start = {
        "bash": (["bash", "--norc", "--noprofile", "-i"], f"source {program}/script.bash\n"),
        "zsh": (["zsh", "-f", "-i"], f"autoload -Uz compinit; compinit -u -D; source {program}/script.zsh\n"),
        "fish": (["fish", "--no-config", "-i"], f"source {program}/script.fish\n"),
    }[shell]
    for typed, expected in (("technique=ffn_scaling_e\t", "technique=ffn_scaling_exact"), ("gat\t", "gate")):
        text = typed_at(start[0], start[1], f"precision-lab {typed}")
        assert f"precision-lab {expected}" in text, text


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_parses_its_script(program, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", str(program / f"script.{shell}")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def ready(terminal, seconds):
    return select.select([terminal], [], [], seconds)[0]


def typed_at(command, setup, text, patience=20.0):
    """What a shell shows on its terminal once `text` is typed, without sequences that control the terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", PS1="> ", COLUMNS="200", LINES="50")
        os.execvp(command[0], command)
    shown = b""
    try:
        for typed, quiet in ((setup, 2.0), (text, 3.0)):
            os.write(terminal, typed.encode())
            before, until = len(shown), time.monotonic() + patience
            while (
                time.monotonic() < until and select.select([terminal], [], [], quiet if len(shown) > before else 5)[0]
            ):
                shown += os.read(terminal, 65536)
                if b"\x1b[c" in shown[before:]:  # asks what the terminal is
                    os.write(terminal, b"\x1b[?62c")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)
    plain = re.sub(rb"\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[\[(>=][0-9;?<]*[A-Za-z]?|[\r\x08\x00]", b"", shown)
    return plain.decode(errors="replace")
