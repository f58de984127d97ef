"""`python -m experiments.spared_layers.exchanged SCAN OUT`: local exchange at the sizes that a knapsack did not win.

SCAN: the folder of the scan from which the searched sets come. For each published set that they do not dominate
(sets.json), `search` starts from the knapsack's choice of its size and exchanges groups by trials of whole generations,
on other prompts and seeds than those of +exp=spared_layers. OUT: a folder for the searches, one each; finished ones
are kept.

Writes OUT/exchanged.json, the swaps that were kept; and `conf/exp/spared_layers_exchanged.yaml` beside this file: the
variants of +exp=spared_layers, and where a swap was kept, the set after exchange and a claim about the published one.
Without a swap, the set is that of the knapsack, which is judged already.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir

from experiments.spared_layers.figure import SETS
from experiments.spared_layers.searched import FORMATS, HERE, MARGIN, MIXED, write_experiment
from precision_lab.cli import main as command
from precision_lab.cli.config import build_spec
from precision_lab.lab.bench import Bench
from precision_lab.record.files import write_json
from precision_lab.techniques.base import applied
from precision_lab.techniques.parts.weight_storage import weight_storage

JUDGED = HERE.parents[1] / "results" / "reference" / "cpu" / "spared_layers" / "sets.json"
TRIALS = ("sampler.steps=3", "trials.sizes=0", "optuna.baseline=false", "workers=1")
HELD_OUT = "holdout.prompts=[a blue star on a yellow background]"
"""`search` must have one; the run of the sets decides."""

ABOUT = (
    "# Written by exchanged.py: +exp=spared_layers, and for each published set that the knapsack of its size does\n"
    "# not dominate, the set after local exchange, FORMAT_exchanged_NAME.\n"
)


def main(scan: Path, out: Path) -> None:
    """Searches, and writes the experiment. Raises SystemExit if a search fails."""
    with initialize_config_dir(str(HERE.parents[1] / "conf"), version_base="1.3"):
        spec = build_spec(compose("config", overrides=["+exp=spared_layers"]), [])
    components = Bench(spec).components("float32")
    published = {variant.name: variant for variant in spec.variants}
    sources = {claim["subject"]: claim["source"] for claim in spec.claims if claim["against"] in FORMATS}
    variants: dict[str, Any] = {}
    claims: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for name in open_questions():
        with applied(components, published[name].techniques):
            size = weight_storage(components)["transformer"].bits // 8
        form = name.partition("_")[0]
        own = searched(scan, out / name, MIXED.get(name, FORMATS[form]), size)
        nodes = own.pop("nodes")
        found[name] = {"bytes": size, **own}
        if not own["swaps"]:
            continue
        rival = name.replace(form, f"{form}_exchanged", 1)
        variants[rival] = {"technique": nodes}
        claims[f"SE_{name}"] = {
            "text": f"{name} drifts no more than the searched set of its size after exchange",
            "source": sources[name],
            "metric": "drift",
            "relation": "not_larger",
            "subject": name,
            "against": rival,
            "margin": MARGIN,
        }
    write_json(out / "exchanged.json", found)
    write_experiment("spared_layers_exchanged", ABOUT, variants, claims)


def open_questions() -> list[str]:
    """The published sets that the searched set of their size does not dominate, as FORMAT_NAME."""
    judged = json.loads(JUDGED.read_text())
    words = {f"{form}_{name}": judged[name][form]["word"] for form in FORMATS for name in SETS}
    return [name for name, word in words.items() if word not in (None, "dominated")]


def searched(scan: Path, out: Path, candidates: list[str], size: int) -> dict[str, Any]:
    """The recipe after exchange within `size` bytes, as `nodes`, and the `swaps` that were kept."""
    arguments = [f"candidate=[{','.join(candidates)}]", f"sensitivity={scan}", f"budget.gb={(size + 0.5) / 1e9!r}"]
    is_done = (out / "search.json").exists()
    if not is_done and command(["search", *arguments, *TRIALS, HELD_OUT, f"out={out}"]):
        raise SystemExit(f"the search in {out} failed")
    findings = json.loads((out / "search.json").read_text())
    [(budget, name)] = findings["found"].items()
    nodes = yaml.safe_load((out / "technique" / f"{name}.yaml").read_text())
    return {"nodes": nodes, "swaps": findings["swaps"].get(budget, []), "noise_floor": findings["noise_floor"]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
