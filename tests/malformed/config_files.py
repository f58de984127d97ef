"""Generates yaml files in --config-dir that are no yaml, or not what their group holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from tests.malformed.harness import Input

DEFAULTS = ("3", "text", "{a: 1}", "[3]", "[[a]]", "[{a: 1, b: 2}]", "[nothing]", "[null]", "[{/exp: mine}]")
TAGS = ("!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!!binary aGk=", "!!set {a, b}", "!own x")

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
