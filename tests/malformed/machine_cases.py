"""Settings of `submit`, `device` and `completion` with values that they cannot have, one fault a line."""

from __future__ import annotations

import random

from tests.malformed.command_cases import Case, unknown
from tests.malformed.command_line import WORDS, misspelt


def of_submissions(rng: random.Random) -> list[Case]:
    experiment = misspelt("findings", rng)
    setting = misspelt("prompts", rng)
    return [
        (["submit", "out="], ["out"]),
        (["submit", "out=[a]"], ["out"]),
        (["submit", "out=3"], ["out"]),
        (["submit", "out=a\0b"], ["out"]),
        (["submit", "out='a\tb'"], ["out"]),
        (["submit", f"out={'x' * 300}"], ["out=xxx"]),
        (["submit", "out=taken"], ["out=taken"], {"taken/mine.txt": "mine"}),
        (["submit", "out=taken"], ["out=taken"], {"taken": "a file"}),
        (["submit", "out=taken/x"], ["taken"], {"taken": "a file"}),
        (["submit", "overrides=text"], ["overrides"]),
        (["submit", "overrides=null"], ["overrides"]),
        (["submit", "overrides=3"], ["overrides"]),
        (["submit", "overrides={a: 1}"], ["overrides"]),
        (["submit", "overrides=[1]"], ["overrides"]),
        (["submit", "overrides=[null]"], ["overrides"]),
        (["submit", "overrides=[[a]]"], ["overrides"]),
        (["submit", "overrides=[]"], None),
        (["submit", "overrides=['']"], None),
        (["submit", f"overrides=['+exp={experiment}']"], [experiment]),
        (["submit", f"overrides=['+{setting}=[a]']"], [setting]),
        (["submit", f"overrides=['{setting}=[a]']"], [setting]),
        (["submit", "overrides=['seeds=[a]']"], ["seeds"]),
        (["submit", "overrides=['seeds=[0,0]']"], ["seeds"]),
        (["submit", "overrides=['out=x']"], ["out=x"]),
        (["submit", "overrides=['resume=true']"], ["resume=true"]),
        (["submit", "overrides=['--config-dir','x']"], ["config-dir"]),
        (["submit", "overrides=['gate']"], ["gate"]),
        (["submit", "overrides=['model=nothing']"], ["nothing"]),
        (["submit", "overrides=['technique=[nothing]']"], ["nothing"]),
        (["submit", "overrides=['dtype=float16,float32']"], ["dtype"]),
        (["submit", "overrides=['dtype=float8']"], ["dtype"]),
        (["submit", "overrides=['only=[nothing]']"], ["nothing"]),
        (["submit", "overrides=['a b']"], ["a b"]),
        (["submit", "overrides=['seeds=[']"], ["seeds=["]),
        (["submit", "run=x"], ["run"]),
        (["submit", "+exp=findings"], ["exp"]),
        (["submit", "model=micro"], ["model"]),
        (["submit", "seeds=[0]"], ["seeds"]),
        unknown("submit", "overrides", "[a]", rng),
        ([misspelt("submit", rng)], ["Did you mean", "submit"]),
    ]


def of_devices(rng: random.Random) -> list[Case]:
    return [
        (["device", "tf32=maybe"], ["tf32"]),
        (["device", "tf32=1"], ["tf32"]),
        (["device", "tf32=[true]"], ["tf32"]),
        (["device", "tf32={on: true}"], ["tf32"]),
        (["device", "tf32="], ["tf32"]),
        (["device", "out="], ["out"]),
        (["device", "out=[a]"], ["out"]),
        (["device", "out=true"], ["out"]),
        (["device", "out=a\0b"], ["out"]),
        (["device", f"out={'x' * 300}"], ["out=xxx"]),
        (["device", "out=taken"], ["out=taken"], {"taken": "a file"}),
        (["device", "out=taken/x"], ["taken"], {"taken": "a file"}),
        (["device", "out=taken"], ["out=taken"], {"taken/device.json": "{}"}),
        (["device", "claims=3"], ["claims"]),
        (["device", "claims=[a]"], ["claims"]),
        (["device", "+claims.X=3"], ["X"]),
        (["device", "+claims.X={text: t}"], ["X"]),
        (["device", "+claims.X={txet: t}"], ["txet"]),
        (["device", "dtype=float16"], ["dtype"]),
        (["device", "model=micro"], ["model"]),
        (["device", "run=a"], ["run"]),
        (["device", "+exp=findings"], ["exp"]),
        unknown("device", "tf32", "true", rng),
        unknown("device", "claims", "3", rng),
        ([misspelt("device", rng)], ["Did you mean", "device"]),
    ]


def of_completions(rng: random.Random) -> list[Case]:
    name = misspelt(rng.choice(("bash", "zsh", "fish")), rng)
    return [
        (["completion"], ["bash"]),
        (["completion", name], [name]),
        (["completion", "Bash"], ["Bash"]),
        (["completion", ""], ["bash, zsh, fish"]),
        (["completion", "bash", "zsh"], ["bash zsh"]),
        (["completion", "bash", "--nothing"], ["--nothing"]),
        (["completion", "-m"], ["-m"]),
        (["completion", f"shell={name}"], ["shell"]),
        (["completion", rng.choice(WORDS)], ["completion"]),
        ([misspelt("completion", rng), "bash"], ["completion"]),
        (["completion", "words"], None),
        (["completion", "words", rng.choice(WORDS)], None),
        (["completion", "words", "report", "format="], None),
        (["completion", "words", misspelt("report", rng), "run="], None),
    ]
