"""Generates malformed command lines, from the settings that the shipped configurations compose.

Keys and values come from the composed tree, so that a new setting is covered without a change here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import cycle, islice
from typing import Any

from hydra import compose
from omegaconf import OmegaConf

from tests.composing import configurations
from tests.malformed.config_files import of_files
from tests.malformed.harness import Input, named

BASE = ("+exp=ffn_scaling", "technique=[fp32_norm_out]", "probe=[range,massive]")
ROOTS: Mapping[str, Sequence[str]] = {
    "config": (),
    "gate": ("gate", "gate.update=true"),
    "prove": ("prove",),
    "compare": ("compare",),
    "report": ("report",),
    "device": ("device",),
    "models": ("models",),
    "recipe": ("recipe",),
}
EXPERIMENTS = ("config", "gate", "prove")
# mappings whose names are free: an unknown name is refused only for what it holds
FREE = (
    "variants",
    "sites",
    "claims",
    "probe",
    "technique",
    "factorial.factors",
    "factorial.generators",
    "pinned.cases",
)
OF_A_CASE = ("seed", "steps", "prompt")  # a pinned case need not state them
WORDS = ("nope", "[a", "größe", "雪", "a:b", "🌨", "x" * 300, "-", "\t", "~", "None", "1_0", "0x1F", "a b", "@nowhere")
HUGE = ("100000000", "100000000000", "1" + "0" * 30, "1e308", "9" * 4000, "-" + "9" * 30)
PATTERNS = (
    "{0..99999999}",
    "transformer_blocks.{0..999999999999999999999}",
    "{a,b}" * 30,
    "transformer_blocks.*.{img_mlp",
    "transformer_blocks..img_mlp",
    "transformer_blocks.**x",
    "**." * 60 + "nothing",
    "vea:decoder",
    "::",
    "transformer_blocks.9999",
    "größe.*",
    "(a+)+$",
    "a" * 5000,
)


@cache
def composed(root: str) -> Mapping[str, Any]:
    """The tree of a command, with plain values."""
    with configurations():
        return OmegaConf.to_container(compose(root, overrides=list(_base(root))), resolve=False)


def places(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of a tree with its dotted name, the tree itself excepted. Names with a dot are left out."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if "." not in str(name) and "+" not in str(name):
                full = f"{key}.{name}" if key else str(name)
                yield full, entry
                yield from places(entry, full)


def wrong(value: Any, rng: random.Random) -> str | None:
    """A value of another type, in the grammar of the command line; None where the type is not known."""
    if isinstance(value, str) and value.startswith("${"):
        return None
    if isinstance(value, bool):
        return rng.choice(["3", "maybe", "[true]", "{a: 1}", "1.5", "null"])
    if isinstance(value, int):
        return rng.choice(["text", "[1]", "{a: 1}", "true", "nan", "inf", "1.5", "'['", "null", "-inf"])
    if isinstance(value, float):
        return rng.choice(["text", "[1]", "{a: 1}", "true", "nan", "inf", "'['", "null"])
    if isinstance(value, str):
        return rng.choice(["[a]", "{a: 1}", "true", "3.5", "[[]]"])
    if isinstance(value, list):
        return rng.choice(["nope", "3", "{a: 1}", "true", "[null]", "[{a: 1}]", "[[a]]", "[true]", "0.1", "'['"])
    if isinstance(value, Mapping):
        return rng.choice(["3", "text", "[a]", "true", "0.5", "[null]"])
    return None


def misspelt(name: str, rng: random.Random) -> str:
    """The name with one character doubled, dropped or exchanged."""
    at = rng.randrange(len(name))
    changed = rng.choice(
        [name[:at] + name[at] + name[at:], name[:at] + name[at + 1 :], name[:at] + "q" + name[at + 1 :]]
    )
    return changed if changed and changed != name else f"{name}q"


def of_another_type(rng: random.Random) -> Input:
    root = rng.choice([*["config"] * 6, "gate", "prove", "compare", "models"])
    key, value = rng.choice([(key, value) for key, value in places(composed(root)) if wrong(value, rng) is not None])
    given = wrong(value, rng)
    assert given is not None
    # a group is chosen by its name: `model=3` asks for the option 3
    prefix = "++" if "." in key else ""
    arguments = [*ROOTS[root], *_base(root), f"{prefix}{key}={given}"]
    # a group of sites may be a pattern or a list
    culprits = None if key.startswith("sites.") else [key, last(key), named(given)]
    return Input(f"{key}={given}", arguments, culprits, deep=_is_deep(key))


def of_unknown_names(rng: random.Random) -> Input:
    root = rng.choice([*["config"] * 6, *ROOTS])
    holders = [("", composed(root)), *((k, v) for k, v in places(composed(root)) if isinstance(v, Mapping))]
    holder, below = rng.choice([pair for pair in holders if pair[0] not in FREE])
    known = [str(name) for name in below] or ["steps"]
    name = rng.choice([misspelt(rng.choice(known), rng), "seed", "steps", "prompt", "lora", "foo", "größe"])
    if name in known or (holder.startswith("pinned.cases.") and name in OF_A_CASE):
        name = f"{name}q"
    given = rng.choice(["1", "true", "text", "[a]", "null", "{a: 1}"])
    key = f"{holder}.{name}" if holder else name
    return Input(f"+{key}={given}", [*ROOTS[root], *_base(root), f"+{key}={given}"], [name, key], deep=_is_deep(key))


def of_special_numbers(rng: random.Random) -> Input:
    numbers = [(k, v) for k, v in places(composed("config")) if isinstance(v, int | float) and not isinstance(v, bool)]
    key, _ = rng.choice(numbers)
    given = rng.choice([*HUGE, "nan", "-1", "0", "-0.0", "1e-320", "2.0", "inf"])
    culprits = [key, last(key)] if given in ("nan", "inf") else None
    return Input(
        f"{key}={given[:20]}",
        [*_base("config"), f"{key}={given}"],
        culprits,
        deep=_is_deep(key),
    )


def of_patterns(rng: random.Random) -> Input:
    lists = [key for key, value in places(composed("config")) if key.rpartition(".")[2] == "sites" and _is_list(value)]
    key, pattern = rng.choice(lists), rng.choice(PATTERNS)
    return Input(
        f"{key}=[{pattern[:20]}]", [*_base("config"), f"++{key}=['{pattern}']"], [last(key), pattern[:20]], deep=True
    )


def of_text(rng: random.Random) -> Input:
    """Odd text at any place of a valid command line."""
    arguments = [*_base("config"), f"prompts=[{rng.choice(WORDS)!r}]", "seeds=[0,1]", "only=[baseline]"]
    at = rng.randrange(len(arguments))
    text = arguments[at]
    for _ in range(rng.randint(1, 3)):
        where = rng.randrange(len(text) + 1)
        edit = rng.choice(["insert", "delete", "replace", "repeat"])
        odd = rng.choice("[]{}(),:=+~@$\\'\"%&*? \t\n\0é雪🌨\ud800")
        if edit == "insert":
            text = text[:where] + odd + text[where:]
        elif edit == "delete":
            text = text[:where] + text[where + 1 :]
        elif edit == "replace":
            text = text[:where] + odd + text[where + 1 :]
        else:
            text = text[:where] + text[where : where + 3] * 50 + text[where:]
    arguments[at] = text
    return Input(f"text {text[:30]!r}", arguments, None)


def of_arguments(rng: random.Random) -> Input:
    """Options, commands and overrides that are no such thing."""
    arguments, culprits = rng.choice(
        [
            (["--config-dir"], ["config-dir"]),
            (["--config-dir", "nowhere"], ["nowhere"]),
            (["--config-dir", ""], None),
            (["--config-dir", "a\0b"], ["config-dir"]),
            (["--config-dri", "x"], ["config-dri", "x"]),
            (["--config-name", "nothing"], ["nothing"]),
            (["--config-path", "x"], ["config-path"]),
            (["--info"], ["info"]),
            (["--cfg", "everything"], ["everything", "cfg"]),
            (["-z"], ["-z"]),
            (["dtype=float16", "gate"], ["gate"]),
            (["gate", "prove"], ["prove"]),
            (["rnu"], ["rnu"]),
            ([rng.choice(WORDS[2:6])], None),
            (["~nothing"], ["nothing"]),
            (["~dtype"], None),
            (["exp=nothing"], ["nothing", "exp"]),
            (["+exp=nothing"], ["nothing"]),
            (["+exp=[ffn_scaling,plain]"], None),
            (["model=nothing"], ["nothing"]),
            (["technique=[nothing]"], ["nothing"]),
            (["technique=[true]"], ["technique"]),
            (["technique=nothing"], ["nothing"]),
            (["probe=0.1"], ["probe"]),
            (["+hydra.nothing=1"], ["nothing"]),
            (["hydra.run=3"], ["hydra.run"]),
            (["dtype=float16,float32"], ["dtype"]),
            (["out=a\0b"], ["out"]),
            (["out="], None),
            (["out=${oc.env:NO_SUCH_VARIABLE}"], ["NO_SUCH_VARIABLE"]),
            (["dtype=${nothing}"], ["nothing"]),
            (["dtype=${dtype}"], ["dtype"]),
            (["dtype=${experiment}", "experiment=${dtype}"], ["dtype", "experiment"]),
            (["dtype=${"], ["dtype"]),
            (["dtype=${oc.nothing:1}"], ["oc.nothing"]),
            (["prompts=@nowhere.txt"], ["nowhere.txt"]),
            (["prompts=@."], ["prompts"]),
            (["workers=1000000"], ["workers"]),
            (["seeds=[0,0]"], ["seeds"]),
            (["+technique.x._target_=os"], ["technique.x"]),
            (["+technique.x._target_=nowhere.Thing"], ["nowhere"]),
            (["+technique.x._target_=precision_lab.techniques.float32.Flaot32"], ["Flaot32"]),
            (["+technique.x._target_=sys.exit"], ["technique.x"]),
            (["+technique.x={_target_: precision_lab.techniques.float32.Float32, sties: [a]}"], ["sties"]),
            (["+technique.x={_target_: precision_lab.techniques.float32.Float32, _partial_: 3}"], ["_partial_"]),
            (["+claims.X={text: 3}"], ["X"]),
            (["+claims.X={text: t, source: s, metric: drift, relation: equal, subject: baseline, bond: 1}"], ["bond"]),
        ]
    )
    return Input(" ".join(arguments), arguments, culprits)


KINDS: Sequence[Callable[[random.Random], Input]] = (
    of_another_type,
    of_unknown_names,
    of_another_type,
    of_files,
    of_arguments,
    of_text,
    of_files,
    of_unknown_names,
    of_special_numbers,
    of_patterns,
)


def generated(count: int, seed: int, kinds: Sequence[Callable[[random.Random], Input]] = KINDS) -> list[Input]:
    """Inputs of all kinds in turn."""
    rng = random.Random(seed)
    return [make(rng) for make in islice(cycle(kinds), count)]


def _base(root: str) -> Sequence[str]:
    return BASE if root in EXPERIMENTS else ()


def last(key: str) -> str:
    return key.rpartition(".")[2]


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("${"))


def _is_deep(key: str) -> bool:
    """Whether the setting is checked against the subject, when a run is planned: its cases, and names of its sites."""
    return key.startswith(("sampler", "image", "pinned")) or key.endswith(".sites")
