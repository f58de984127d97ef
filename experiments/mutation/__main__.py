"""Mutation check: whether the gate and the parity tests notice small numerical mistakes in the model files.

    python -m experiments.mutation --count 60 --seed 0 --to DIR [--model micro_21]

Tries the sampled mutants until `count` of them ran without an exception. Appends each to DIR/mutants.jsonl immediately,
so that an interrupted run can continue, and finally writes DIR/mutants.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from experiments.mutation.mutants import FILES, Mutant, all_mutants, sample
from experiments.mutation.precision import PRECISION
from experiments.mutation.table import markdown
from experiments.mutation.trial import PASSED, STILLBORN, Sandbox, Verdict

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    *(
        "+exp=gate",
        "only=[baseline]",
        "sampler.steps=2",
        "pinned.steps=3",
        "prompts=[a red circle on a blue background]",
    ),
    *("seeds=[0]", "gate.history=null"),
    "gate.learn.prompts=[a blue star on a yellow background,two small crosses,a large black square]",
    *("latency.min_rounds=0", "latency.max_rounds=0"),
)
"""A cheap gate: all pinned cases, a single other case, and no timing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="mutants that run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=FILES, default="micro", help="whose files are mutated, and whose gate runs")
    parser.add_argument("--operators", default="all", help="all, precision, or names separated by commas")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for a gate, and for the parity tests")
    parser.add_argument("--shard", default="0/1", help="I/N: every Nth mutant, from the Ith; logs can be put together")
    parser.add_argument("--gate-only", action="store_true", help="leave the parity tests to a later call with this log")
    parser.add_argument("--list", action="store_true", help="print the mutants in order and stop")
    arguments = parser.parse_args()

    names = set(PRECISION) if arguments.operators == "precision" else set(arguments.operators.split(","))
    population = [
        mutant
        for mutant in all_mutants(ROOT, arguments.model)
        if arguments.operators == "all" or mutant.operator in names
    ]
    first, stride = map(int, arguments.shard.split("/"))
    order = sample(population, len(population), arguments.seed)[first::stride]
    if arguments.list:
        for mutant in order:
            print(_described(mutant)["diff"].splitlines()[-1], f"  [{mutant.name}]")
        return
    arguments.to.mkdir(parents=True, exist_ok=True)
    log = arguments.to / "mutants.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    records = list({record["name"]: record for record in lines}.values())  # the last verdict on each
    print(f"{len(population)} mutants, {len(records)} tried before")
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        with_parity = not arguments.gate_only
        sandbox = Sandbox(ROOT, Path(folder), SETTINGS, arguments.timeout, with_parity, arguments.model)
        print(f"the gate passes the unchanged code in {sandbox.learn():.0f} s", flush=True)
        tried = {record["name"]: record["by"] for record in records}
        for mutant in order:
            passed = tried.get(mutant.name) == PASSED and not arguments.gate_only
            if mutant.name in tried and not passed:
                continue
            if passed:
                records = [record for record in records if record["name"] != mutant.name]
            elif sum(record["by"] != STILLBORN for record in records) >= arguments.count:
                continue
            records.append(_described(mutant) | sandbox.judge(mutant, passed)._asdict())
            with log.open("a") as stream:
                stream.write(json.dumps(records[-1]) + "\n")
            print(len(records), mutant.name, Verdict(*(records[-1][key] for key in Verdict._fields)), flush=True)
    (arguments.to / "mutants.md").write_text(markdown(records))
    print(markdown(records).splitlines()[0])


def _described(mutant: Mutant) -> dict[str, Any]:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    place = {"file": mutant.file, "line": mutant.line, "operator": mutant.operator}
    return {"name": mutant.name, **place, "diff": mutant.diff(text)}


if __name__ == "__main__":
    main()
