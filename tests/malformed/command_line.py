"""Generates malformed command lines and yaml files, from the settings that the shipped configurations compose.

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
# commands whose valid inputs would be carried out: only what a schema refuses is given to them
UNSTOPPED: Mapping[str, Sequence[str]] = {
    "survival": ("survival",),
    "sensitivity": ("sensitivity",),
    "search": ("search",),
    "culprits": ("culprits",),
    "scales": ("search", "strategy=scales"),
    "fp8_scales": ("search", "strategy=fp8_scales"),
    "dump_inputs": ("models", "dump_inputs=inputs.safetensors"),
    "compare_dump": ("compare", "dump=nowhere.safetensors"),
    "compare_devices": ("compare", "devices=[nowhere.json]"),
    **{name: ROOTS[name] for name in ("compare", "report", "device", "models", "recipe")},
}
# what else is wrong with a command line of UNSTOPPED, which may be named first
ALSO_WRONG = {"recipe": ["to="], "compare_dump": ["nowhere.safetensors"], "compare_devices": ["nowhere.json"]}
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
DEFAULTS = ("3", "text", "{a: 1}", "[3]", "[[a]]", "[{a: 1, b: 2}]", "[nothing]", "[null]", "[{/exp: mine}]")
TAGS = ("!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!!binary aGk=", "!!set {a, b}", "!own x")


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
    culprits = None if key.startswith("sites.") else [key, _last(key), named(given)]
    return Input(f"{key}={given}", arguments, culprits, deep=_is_deep(key))


def of_unknown_names(rng: random.Random) -> Input:
    root = rng.choice([*["config"] * 6, *ROOTS])
    holders = [("", composed(root)), *((k, v) for k, v in places(composed(root)) if isinstance(v, Mapping))]
    holder, below = rng.choice([pair for pair in holders if pair[0] not in FREE])
    known = [str(name) for name in below] or ["steps"]
    name = rng.choice([misspelt(rng.choice(known), rng), "seed", "steps", "prompt", "lora", "foo", "größe"])
    if name in known:
        name = f"{name}q"
    given = rng.choice(["1", "true", "text", "[a]", "null", "{a: 1}"])
    key = f"{holder}.{name}" if holder else name
    return Input(f"+{key}={given}", [*ROOTS[root], *_base(root), f"+{key}={given}"], [name, key], deep=_is_deep(key))


def of_special_numbers(rng: random.Random) -> Input:
    numbers = [(k, v) for k, v in places(composed("config")) if isinstance(v, int | float) and not isinstance(v, bool)]
    key, _ = rng.choice(numbers)
    given = rng.choice([*HUGE, "nan", "-1", "0", "-0.0", "1e-320", "2.0", "inf"])
    culprits = [key, _last(key)] if given in ("nan", "inf") else None
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
        f"{key}=[{pattern[:20]}]", [*_base("config"), f"++{key}=['{pattern}']"], [_last(key), pattern[:20]], deep=True
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


def of_a_command(rng: random.Random) -> Input:
    """A setting of a command with a value that it cannot have."""
    name = misspelt(rng.choice(("bash", "zsh", "fish")), rng)
    arguments, culprits = rng.choice(
        [
            (["report"], ["run="]),
            (["report", f"run={rng.choice(WORDS[4:6])}", "format=pdf"], ["format", "run="]),
            (["report", "run=nowhere", f"format={misspelt('badge', rng)}"], ["format"]),
            (["report", "run=nowhere", "format=md"], ["nowhere"]),
            (["report", "run=nowhere", "format=badge"], ["nowhere"]),
            (["report", "run=[a,b]"], ["run"]),
            (["report", "run=a", "sweep=b"], ["one of them"]),
            (["report", "run=.", "out=x"], ["out="]),
            (["report", "history=nowhere.csv"], ["nowhere.csv"]),
            (["report", "sweep=nowhere"], ["nowhere"]),
            (["report", "history=."], None),
            (["compare"], ["runs="]),
            (["compare", "runs=[]"], ["runs="]),
            (["compare", "runs=[a]"], ["runs="]),
            (["compare", "runs=[nowhere,nowhere2]"], ["nowhere"]),
            (["compare", "runs=[nowhere/*]"], ["nowhere/*"]),
            (["compare", "runs=nowhere"], ["runs"]),
            (["compare", "runs=[null,1]"], ["runs"]),
            (["compare", "runs=[.,.]", "reference=nowhere:a"], ["nowhere", "manifest", "."]),
            (["compare", "dump="], ["dump"]),
            (["compare", "devices=[]"], ["devices"]),
            (["compare", "devices=[a]"], ["devices"]),
            (["compare", "devices=nowhere"], ["devices"]),
            (["compare", "devices=[nowhere,nowhere2]"], ["nowhere"]),
            (["compare", "devices=[.,.]"], ["device.json"]),
            (["compare", "devices=[a,b]", "runs=[a,b]"], ["runs"]),
            (["compare", "devices=[a,b]", "out="], ["out"]),
            (["compare", "dump=nowhere.safetensors"], ["nowhere.safetensors"]),
            (["compare", "dump=."], None),
            (["compare", "dump=[a]"], ["dump"]),
            (["compare", "dump=a", "runs=[a,b]"], ["runs"]),
            (["compare", "dump=nowhere.safetensors", "technique=[fp8]"], ["technique"]),
            (["models", "inspect=nowhere"], ["nowhere"]),
            (["models", "inspect="], None),
            (["models", "inspect=[a]"], ["inspect"]),
            (["models", "inspect=a", "make=micro"], ["make", "inspect"]),
            (["models", f"make={misspelt('micro', rng)}", "to=x"], ["make"]),
            (["models", "make=micro"], ["to="]),
            (["models", "technique=[affine4]", "to=x"], ["from"]),
            (["models", "dtype=float8", "from=a", "to=b"], ["dtype"]),
            (["models", "dump_inputs="], ["dump_inputs"]),
            (["models", "dump_inputs=a", "case=nothing"], ["nothing"]),
            (["models", "dump_inputs=a", "step=-1"], ["step"]),
            (["models", "dump_inputs=a", "step=1.5"], ["step"]),
            (["models", "dump_inputs=a", "seed=1"], ["seed"]),
            (["models", "model=nothing"], ["nothing"]),
            (["recipe"], ["to="]),
            (["recipe", f"to={misspelt('mflux', rng)}", "technique=affine4"], ["to="]),
            (["recipe", "to=mflux"], ["technique="]),
            (["recipe", "from=mflux"], ["file="]),
            (["recipe", "from=mflux", "file=nowhere.json"], ["nowhere.json"]),
            (["recipe", "from=mflux", "file=a", "name=a b"], ["name"]),
            (["recipe", "to=mflux", "file=."], None),
            (["survival", "adapter=nowhere.safetensors"], ["nowhere.safetensors"]),
            (["survival", "adapter=a", "rms=1"], ["adapter"]),
            (["survival", "strength=2"], ["strength"]),
            (["survival", "strength=0"], ["strength"]),
            (["survival", "rms=-1"], ["rms"]),
            (["survival", "orders=[]"], ["orders"]),
            (["survival", f"roundings=[{misspelt('nearest', rng)}]"], ["roundings"]),
            (["survival", "rank=0"], ["rank"]),
            (["search"], ["budget"]),
            (["search", "budget.bits=text"], ["budget.bits"]),
            (["search", f"strategy={misspelt('knapsack', rng)}"], ["strategy"]),
            (["search", "budget.bits=4", "sensitivity=nowhere"], ["nowhere"]),
            (["sensitivity", "candidate=[]"], ["candidate"]),
            (["sensitivity", f"candidate=[{misspelt('nvfp4_scaled', rng)}]"], ["candidate"]),
            (["sensitivity", f"by=[{misspelt('operation', rng)}]"], ["by", "operation"]),
            (["culprits", f"at={misspelt('found', rng)}"], ["at is"]),
            (["culprits", "criterion=infinite"], ["criterion"]),
            (["culprits", "criterion.drift=1", "criterion.metric=psnr_db"], ["criterion"]),
            (["culprits", "between=[a]"], ["between"]),
            (["device", "tf32=maybe"], ["tf32"]),
            (["device", "out="], ["out"]),
            (["device", f"+{misspelt('tf32', rng)}=true"], ["Unknown setting"]),
            (["completion"], ["bash"]),
            (["completion", name], [name]),
            (["completion", "bash", "zsh"], ["bash zsh"]),
            (["completion", f"shell={name}"], ["shell"]),
            ([misspelt("completion", rng), "bash"], ["completion"]),
            (["completion", "words", rng.choice(WORDS)], None),
        ]
    )
    return Input(" ".join(arguments), arguments, culprits)


def of_a_command_in_another_type(rng: random.Random) -> Input:
    root = rng.choice(list(UNSTOPPED))
    stated = ("device.claims", "search.latency")
    unused = ("hydra", "sites.", *(("pinned.",) if root == "culprits" else ()))  # culprits reads no pinned case
    entries = [
        (key, value)
        for key, value in places(composed(root))
        if wrong(value, rng) is not None and f"{root}.{key}" not in stated and not key.startswith(unused)
    ]
    key, value = rng.choice(entries)
    given = wrong(value, rng)
    assert given is not None
    prefix = "++" if "." in key else ""
    arguments = [*UNSTOPPED[root], f"{prefix}{key}={given}"]
    culprits = [key, _last(key), named(given), *ALSO_WRONG.get(root, ())]
    return Input(f"{root}: {key}={given}", arguments, culprits)


def of_a_command_with_unknown_names(rng: random.Random) -> Input:
    root = rng.choice(list(UNSTOPPED))
    name = misspelt(rng.choice([str(name) for name in composed(root)]), rng)
    if name in composed(root):
        name = f"{name}q"
    return Input(f"{root}: +{name}=1", [*UNSTOPPED[root], f"+{name}=1"], [name])


EXPERIMENT = """\
# @package _global_
defaults:
  - /technique@variants.ffn_scaling.technique: [ffn_scaling]
  - /claim@claims: [s3]
  - _self_
experiment: mine
sampler: {steps: 2}
drift:
  sites: ["pipeline:euler_step"]
variants:
  float16: {dtype: float16, expect: any}
"""
TECHNIQUE = """\
mine:
  _target_: precision_lab.techniques.float32.Float32
  sites: ["norm_out"]
"""
PROBE = """\
mine:
  _target_: precision_lab.probes.ranges.RangeCatalogue
  sites: ["norm_out"]
  ports: [out]
"""
FILES: Mapping[str, tuple[str, str]] = {
    "exp": (EXPERIMENT, "+exp=mine"),
    "technique": (TECHNIQUE, "technique=[mine]"),
    "probe": (PROBE, "probe=[mine]"),
}


def of_files(rng: random.Random) -> Input:
    """A yaml file in --config-dir that is no yaml, or not what its group holds."""
    group = rng.choice(list(FILES))
    text, chosen = FILES[group]
    content, culprits, what = _broken(group, text, rng)
    return Input(f"{group}: {what}", ["--config-dir", "conf", chosen], culprits, {f"conf/{group}/mine.yaml": content})


def _broken(group: str, text: str, rng: random.Random) -> tuple[str | bytes, list[str] | None, str]:
    lines = text.splitlines()
    name = ["mine"]
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    kinds: dict[str, Callable[[], tuple[str | bytes, list[str] | None]]] = {
        "unclosed": lambda: (f"{text}x: [1, 2\n", name),
        "tab": lambda: (text.replace("  ", "\t", 1), None),
        "tag": lambda: (f"{text}x: {rng.choice(TAGS)}\n", None),
        "utf-16": lambda: (text.encode("utf-16"), None),
        "latin-1": lambda: (f"{text}# ".encode() + b"\xe9\xff\n", name),
        "nul": lambda: (f"{text}x: a\0b\n", None),
        "empty": lambda: ("", None),
        "scalar": lambda: ("3\n", None),
        "list": lambda: ("[1, 2]\n", None),
        "defaults": lambda: (
            f"defaults: {rng.choice(['3', 'text', '{a: 1}', '[3]', '[[a]]', '[{a: 1, b: 2}]'])}\n{text}",
            None,
        ),
        "self": lambda: (f"{text}x: &x\n  y: *x\n", None),
        "undefined alias": lambda: (f"{text}x: *nothing\n", ["nothing", "mine"]),
        "bomb": lambda: (text + bomb, None),
        "deep": lambda: (text + "x: " + "[" * 3000 + "]" * 3000 + "\n", None),
        "duplicate": lambda: (f"{text}\n{lines[-1]}\n", None),
        "number keys": lambda: (f"{text}3: 4\ntrue: 5\n", None),
        "interpolation": lambda: (f"{text}x: ${{nothing.at.all}}\n", ["nothing.at.all", "'x'"]),
        "environment": lambda: (text.replace("mine", "${oc.env:NO_SUCH_VARIABLE}", 1), None),
        "nan": lambda: (text.replace("2}", ".nan}").replace("[out]", "[.nan]").replace('["norm_out"]', ".inf"), None),
        "line": lambda: ("\n".join(line for line in lines if line is not lines[at]), None),
        "character": lambda: (text[:where] + rng.choice("[]{}:,&*!|>'\"%@`\t\0é雪") + text[where + 1 :], None),
    }
    if group == "exp":
        for key in ("prompt: a", "seed: 3", "steps: 9", "drift: {sties: []}", "factorial: {foo: 1}", "latency: 3"):
            whole = key.partition(":")[0]
            if whole not in ("drift",):
                kinds[key] = lambda key=key, whole=whole: (f"{text}{key}\n", [whole, "foo"])  # type: ignore[misc]
        kinds["drift"] = lambda: (text.replace("  sites:", "  sties:"), ["sties"])
    else:
        kinds["unknown"] = lambda: (f"{text}  sitse: [a]\n", ["sitse"])
        kinds["target"] = lambda: (text.replace("precision_lab", "precision_lba"), ["precision_lba"])
        kinds["text for a list"] = lambda: (text.replace('["norm_out"]', "norm_out"), ["sites"])
    at, where = rng.randrange(len(lines)), rng.randrange(len(text))
    what = rng.choice(list(kinds))
    return (*kinds[what](), what)


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


OF_COMMANDS: Sequence[Callable[[random.Random], Input]] = (
    of_a_command,
    of_a_command_in_another_type,
    of_a_command,
    of_a_command_with_unknown_names,
)


def generated(count: int, seed: int, kinds: Sequence[Callable[[random.Random], Input]] = KINDS) -> list[Input]:
    """Inputs of all kinds in turn."""
    rng = random.Random(seed)
    return [make(rng) for make in islice(cycle(kinds), count)]


def _base(root: str) -> Sequence[str]:
    return BASE if root in EXPERIMENTS else ()


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("${"))


def _is_deep(key: str) -> bool:
    """Whether the setting is checked against the subject, when a run is planned: its cases, and names of its sites."""
    return key.startswith(("sampler", "image", "pinned")) or key.endswith(".sites")
