"""Settings of the commands other than `run` with values that they cannot have, one fault a line."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from safetensors.numpy import save

from tests.malformed.command_line import WORDS, misspelt

DUMP = "dump.safetensors"


@cache
def small_dump() -> bytes:
    """A dump of one array, which a comparison can read."""
    return save({"img_in": np.zeros((1, 4, 4), np.float32)})


# what a case of commands needs on the disk: name -> content
Files = Mapping[str, str | bytes]
Case = tuple[Sequence[str], Sequence[str] | None] | tuple[Sequence[str], Sequence[str] | None, Files]

NO_RECORDS: Sequence[str] = (
    "",
    "[]",
    "{}",
    "3",
    '{"schema_version": 2}',
    '{"schema_version": 99}',
    '{"a": NaN}',
    "[" * 3000,
)


def unknown(command: str, setting: str, value: str, rng: random.Random) -> Case:
    name = misspelt(setting, rng)
    return [command, f"+{name}={value}"], [name]


def of_reports(rng: random.Random) -> list[Case]:
    form = misspelt(rng.choice(("badge", "html")), rng)
    run = {"a/manifest.json": rng.choice(NO_RECORDS)}
    return [
        (["report"], ["run="]),
        (["report", "run=a", "format=pdf"], ["format"]),
        (["report", "run=a", f"format={form}"], ["format"]),
        (["report", "run=a", "format="], ["format"]),
        (["report", "run=a", "format=[md]"], ["format"]),
        (["report", "run=a", "format=MD"], ["format"]),
        (["report", "run=a", "format=null"], ["format"]),
        (["report", "run=a", f"+{misspelt('format', rng)}=md"], ["Unknown setting"]),
        (["report", "run=nowhere", "format=md"], ["nowhere"]),
        (["report", "run=nowhere", "format=badge"], ["nowhere"]),
        (["report", "run=nowhere", "format=html"], ["nowhere"]),
        (["report", f"run={rng.choice(WORDS[4:6])}"], ["run", "is not the folder"]),
        (["report", "run=[a,b]"], ["run"]),
        (["report", "run=~nobody/x"], ["~nobody/x"]),
        (["report", "runs=~nobody/x"], ["~nobody/x"]),
        (["report", "history=~nobody/x.csv"], ["~nobody/x.csv"]),
        (["report", "run=a", "sweep=b"], ["one of them"]),
        (["report", "run=a", "runs=b"], ["one of them"]),
        (["report", "run=.", "out=x"], ["out="]),
        (["report", "run=a"], ["manifest.json"], run),
        (["report", "run=a", "format=md"], ["manifest.json"], run),
        (["report", "run=a", "format=badge"], ["manifest.json"], run),
        (["report", "run=a"], ["a"], {"a": "a file"}),
        (["report", "sweep=nowhere"], ["nowhere"]),
        (["report", "sweep=a", "format=badge"], ["format=badge"], {"a/plan.json": "{}"}),
        (["report", "history=nowhere.csv"], ["nowhere.csv"]),
        (["report", "history=nowhere.csv", "format=md"], ["nowhere.csv"]),
        (["report", "history=."], None),
        (["report", "history=log.csv", "format=badge"], ["format=badge"], {"log.csv": "commit\n"}),
        (["report", "history=log.csv"], ["log.csv"], {"log.csv": "a,b\n1,2\n"}),
        (["report", "runs="], ["run="]),
        (["report", "runs=[]"], ["run="]),
        (["report", "runs=nowhere"], ["nowhere"]),
        (["report", "runs=[nowhere]"], ["nowhere"]),
        (["report", "runs=[.,nowhere]"], ["nowhere", "."]),
        (["report", "runs=nowhere/*"], ["nowhere/*"]),
        (["report", "runs=[nowhere/*,b]"], ["nowhere/*"]),
        (["report", "runs=."], ["runs"]),
        (["report", "runs=.", "format=md"], ["runs"]),
        (["report", "runs=.", "format=badge"], ["format", "runs"]),
        (["report", "runs=3"], ["runs"]),
        (["report", "runs={a: 1}"], ["runs"]),
        (["report", "runs=[null]"], ["runs"]),
        (["report", "runs=[[a]]"], ["runs"]),
        (["report", "runs=[a,'']"], ["runs="]),
        (["report", "runs=a.txt"], ["a.txt"], {"a.txt": "a file"}),
        (["report", "runs=a/*"], ["a/*"], {"a/b.txt": "a file"}),
        (["report", "runs=[a]"], ["a"], {"a/manifest.json": rng.choice(NO_RECORDS)}),
        (["report", "runs=[a]", "out=x"], ["out", "a"], {"x": "a file", "a/manifest.json": "{}"}),
        (["report", "runs=[a,b]", "sweep=c"], ["one of them"]),
        unknown("report", "runs", "a", rng),
    ]


def of_comparisons(rng: random.Random) -> list[Case]:
    records = {"a/device.json": rng.choice(NO_RECORDS), "b/device.json": rng.choice(NO_RECORDS)}
    dump = {DUMP: small_dump()}
    runs = {"a/manifest.json": rng.choice(NO_RECORDS), "b/manifest.json": rng.choice(NO_RECORDS)}
    return [
        (["compare"], ["runs="]),
        (["compare", "runs=[]"], ["runs="]),
        (["compare", "runs=[a]"], ["runs="]),
        (["compare", "runs=[nowhere,nowhere2]"], ["nowhere"]),
        (["compare", "runs=[nowhere/*]"], ["nowhere/*"]),
        (["compare", "runs=nowhere"], ["runs"]),
        (["compare", "runs=[null,1]"], ["runs"]),
        (["compare", "runs=[.,.]", "reference=nowhere:a"], ["nowhere"]),
        (["compare", "runs=[a,b]"], ["manifest.json"], runs),
        (["compare", "runs=[a,b]", "base=nowhere"], ["base"], runs),
        (["compare", "runs=[a,b]", "base=[a]"], ["base"], runs),
        (["compare", "runs=[a,b]", "names=3"], ["names"], runs),
        (["compare", "runs=[a,b]", "names=[a]"], ["names"], runs),
        (["compare", "runs=[a,b]", "names={a: 1}"], ["names"], runs),
        (["compare", "runs=[a,b]", "names=nowhere.yaml"], ["nowhere.yaml"], runs),
        (["compare", "runs=[a,b]", "names=names.yaml"], ["names.yaml"], {**runs, "names.yaml": "[1, 2"}),
        (["compare", "runs=[a,b]", "names=names.yaml"], ["names.yaml"], {**runs, "names.yaml": "- a"}),
        (["compare", "runs=[a,b]", f"blocks={misspelt('relative', rng)}"], ["blocks"], runs),
        (["compare", "runs=[a,b]", "blocks=3"], ["blocks"], runs),
        (["compare", "runs=[a,b]", "out="], ["out"], runs),
        (["compare", "runs=[a,b]", "out=a"], ["out=a"], runs),
        (["compare", "runs=[a,b]", "out=x"], ["out=x"], {**runs, "x": "a file"}),
        (["compare", "dump="], ["dump"]),
        (["compare", "dump=nowhere.safetensors"], ["nowhere.safetensors"]),
        (["compare", "dump=."], None),
        (["compare", "dump=[a]"], ["dump"]),
        (["compare", f"dump={DUMP}", "runs=[a,b]"], ["runs"], dump),
        (["compare", f"dump={DUMP}", "technique=[affine4]"], ["technique"], dump),
        (["compare", f"dump={DUMP}", "devices=[a,b]"], ["devices"], dump),
        (["compare", f"dump={DUMP}", "inputs=nowhere.safetensors"], ["nowhere.safetensors"], dump),
        (["compare", "devices="], ["devices"]),
        (["compare", "devices=[]"], ["devices"]),
        (["compare", "devices=[a]"], ["devices"]),
        (["compare", "devices=a"], ["devices"]),
        (["compare", "devices=3"], ["devices"]),
        (["compare", "devices={a: b}"], ["devices"]),
        (["compare", "devices=[null,a]"], ["devices"]),
        (["compare", "devices=[1,2]"], ["devices"]),
        (["compare", "devices=[[a],[b]]"], ["devices"]),
        (["compare", "devices=[a,'']"], ["devices"]),
        (["compare", "devices=[nowhere,nowhere2]"], ["nowhere"]),
        (["compare", "devices=[nowhere/device.json,nowhere]"], ["nowhere"]),
        (["compare", "devices=[.,.]"], ["device.json"]),
        (["compare", "devices=[~nobody/a,b]"], ["~nobody/a"]),
        (["compare", "devices=[a,b]", f"out={'x' * 300}"], ["out=xxx"], records),
        (["compare", "devices=[a,b]"], ["device.json"], records),
        (["compare", "devices=[a/device.json,b/device.json]"], ["device.json"], records),
        (["compare", "devices=[a,a]"], ["device.json"], records),
        (["compare", "devices=[a,b]", "runs=[c,d]"], ["runs"], records),
        (["compare", "devices=[a,b]", "base=a"], ["base"], records),
        (["compare", "devices=[a,b]", "format=md"], ["format"], records),
        (["compare", "devices=[a,b]", "out="], ["out"], records),
        (["compare", "devices=[a,b]", "out=b"], ["out=b"], {**records, "b/other.txt": "mine"}),
        (["compare", "devices=[a,b]", "out=x"], ["out=x"], {**records, "x": "a file"}),
        (["compare", "devices=[a,b]", "out=[x]"], ["out"], records),
        unknown("compare", "devices", "[a,b]", rng),
    ]


def of_models(rng: random.Random) -> list[Case]:
    preset = misspelt("micro", rng)
    garbage = bytes(rng.randrange(256) for _ in range(64))
    return [
        (["models", "inspect=nowhere"], ["nowhere"]),
        (["models", "inspect="], None),
        (["models", "inspect=[a]"], ["inspect"]),
        (["models", "inspect=a", "make=micro"], ["make", "inspect"]),
        (["models", "inspect=a", "seed=1"], ["seed"]),
        (["models", "inspect=a.safetensors"], ["a.safetensors"], {"a.safetensors": garbage}),
        (["models", "inspect=a.gguf"], ["a.gguf"], {"a.gguf": garbage}),
        (["models", "inspect=a"], ["a"], {"a/config.json": "{"}),
        (["models", f"make={preset}", "to=x"], ["make"]),
        (["models", "make=micro"], ["to="]),
        (["models", "make=micro", "to="], ["to="]),
        (["models", "make=micro", "to=[x]"], ["to"]),
        (["models", "make=micro", "to=taken"], ["taken"], {"taken/mine.txt": "mine"}),
        (["models", "make=micro", "to=taken"], ["taken"], {"taken": "a file"}),
        (["models", "make=micro", "to=taken/x"], ["taken"], {"taken": "a file"}),
        (["models", "make=micro", "to=x", "seed=-1"], ["seed"]),
        (["models", "make=micro", "to=x", "seed=1.5"], ["seed"]),
        (["models", "make=micro", "to=x", "dtype=float16"], ["make"]),
        (["models", "make=micro", "to=x", "technique=[affine4]"], ["make"]),
        (["models", "to=x"], ["to"]),
        (["models", "seed=3"], ["seed"]),
        (["models", "model=micro"], ["model"]),
        (["models", "sampler.steps=3"], ["sampler.steps"]),
        (["models", "prompts=[a]"], ["prompts"]),
        (["models", "+format=md"], ["format"]),
        (["models", "out=x"], ["out"]),
        (["models", "technique=[affine4]", "to=x"], ["from"]),
        (["models", "technique=[affine4]", "from=nowhere"], ["to="]),
        (["models", "technique=[affine4]", "from=nowhere", "to=x"], ["nowhere"]),
        (["models", "technique=[ffn_scaling]", "from=nowhere", "to=x"], ["ffn_scaling"]),
        (["models", f"technique=[{misspelt('affine4_img_mod8', rng)}]", "from=a", "to=x"], ["technique"]),
        (["models", "dtype=bfloat16", "from=nowhere", "to=x"], ["nowhere"]),
        (["models", "dtype=float8", "from=a", "to=b"], ["dtype"]),
        (["models", f"dtype={misspelt('bfloat16', rng)}", "from=a", "to=b"], ["dtype"]),
        (["models", "dump_inputs="], ["dump_inputs"]),
        (["models", "dump_inputs=[a]"], ["dump_inputs"]),
        (["models", "dump_inputs=a"], ["dump_inputs"], {"a/b.txt": "a folder"}),
        (["models", "dump_inputs=a", "case=nothing"], ["nothing"]),
        (["models", "dump_inputs=a", "case=3"], ["case"]),
        (["models", "dump_inputs=a", "step=-1"], ["step"]),
        (["models", "dump_inputs=a", "step=1.5"], ["step"]),
        (["models", "dump_inputs=a", "step=99999"], ["step"]),
        (["models", "dump_inputs=a", "seed=1"], ["seed"]),
        (["models", "dump_inputs=a", "prompts=[]"], ["prompts"]),
        (["models", "dump_inputs=a", "seeds=[-1]"], ["seeds"]),
        (["models", "dump_inputs=a", "dtype=float16"], ["dtype"]),
        (["models", "dump_inputs=a", "make=micro"], ["make"]),
        (["models", "model=nothing"], ["nothing"]),
        unknown("models", "inspect", "a", rng),
    ]


def of_measurements(rng: random.Random) -> list[Case]:
    """Of the commands that measure a model, and of `recipe`."""
    return [
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
        (["search", f"strategy={misspelt('knapsack', rng)}", "budget.bits=4"], ["strategy"]),
        (["search", "budget.bits=4", "sensitivity=nowhere"], ["nowhere"]),
        (["sensitivity", "candidate=[]"], ["candidate"]),
        (["sensitivity", f"candidate=[{misspelt('nvfp4_scaled', rng)}]"], ["candidate"]),
        (["sensitivity", f"by=[{misspelt('operation', rng)}]"], ["by", "operation"]),
        (["culprits", f"at={misspelt('found', rng)}"], ["at is"]),
        (["culprits", "criterion=infinite"], ["criterion"]),
        (["culprits", "criterion.drift=1", "criterion.metric=psnr_db"], ["criterion"]),
        (["culprits", "between=[a]"], ["between"]),
        (["culprits", "++pinned.cases.wide.width=[1]"], ["pinned.cases.wide"]),
        (["culprits", "++pinned.cases.wide.width=text"], ["pinned.cases.wide"]),
    ]
