"""`python experiments/spared_layers/searched.py SCAN`: for each set of +exp=spared_layers, a searched set of its size.

SCAN: the folder of a finished scan of the same model that measured affine4, nvfp4_scaled and fp8_channel. A knapsack
over the sensitivities chooses which groups have the format, within the bytes of the published set. Writes
`conf/exp/spared_layers_searched.yaml` beside this file: the variants of +exp=spared_layers, the searched sets, and a
claim for each published set.

--formats affine4: only sets in these formats, which are all that SCAN must have. --name NAME: of the file. Further
arguments are overrides, such as model=transformer_synthetic model.path=DIR for the sets of another model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from precision_lab.analysis.search.knapsack import least_error
from precision_lab.analysis.search.menu import menu_of
from precision_lab.cli.candidates import build_candidates
from precision_lab.cli.config import build_spec
from precision_lab.lab.bench import Bench
from precision_lab.lab.groups import groups_of
from precision_lab.lab.recipes import Recipes
from precision_lab.record.scan import Scan
from precision_lab.techniques.base import applied
from precision_lab.techniques.parts.weight_storage import weight_storage

HERE = Path(__file__).parent
EXPERIMENT = "spared_layers_searched"
FORMATS = {"affine4": ["affine4"], "nvfp4": ["nvfp4_scaled"], "fp8": ["fp8_channel"]}
"""The candidates of each format; what none of them has is as stored."""
MIXED = {"fp8_nunchaku": ["fp8_channel", "affine4"]}
"""Sets that are smaller than the format alone can be."""
MARGIN = 0.02
"""The smallest relative difference of drift that matters."""
ALIKE = 0.005
"""Relative difference in bytes up to which a published and a searched set are of one size."""

ABOUT = (
    "# Written by searched.py: +exp=spared_layers, and for each set the searched set of its size on the checkpoint\n"
    "# {}. FORMAT_searched_NAME has the size of FORMAT_NAME, and of others that are as large.\n"
)


def main(scan: Path, overrides: Sequence[str] = (), formats: Sequence[str] = (*FORMATS,), to: str = EXPERIMENT) -> None:
    """Writes the experiment `to`, of sets in `formats`. Raises SystemExit where no choice is within 0.5 % of a size."""
    mixed = [own for name, own in MIXED.items() if name.partition("_")[0] in formats]
    names = sorted({name for own in (*(FORMATS[form] for form in formats), *mixed) for name in own})
    with initialize_config_dir(str(HERE.parents[1] / "conf"), version_base="1.3"):
        spec = build_spec(compose("config", overrides=["+exp=spared_layers", *overrides]), [])
        config = compose("sensitivity", overrides=[f"candidate=[{','.join(names)}]"])
    OmegaConf.resolve(config.candidate)
    components, opened = Bench(spec).components("float32"), Scan.open(scan)
    groups = groups_of(components, None, ["operation", "block"])
    variants: dict[str, Any] = {}
    claims: dict[str, Any] = {}
    by_size: dict[tuple[str, int], str] = {}
    sources = {claim["subject"]: claim["source"] for claim in spec.claims if claim["against"] in FORMATS}
    for variant in spec.variants:
        form, _, name = variant.name.partition("_")
        if form not in formats or name in ("", "twin"):
            continue
        with applied(components, variant.techniques):
            size = weight_storage(components)["transformer"].bits // 8
        if (form, size) not in by_size:
            wanted = MIXED.get(variant.name, FORMATS[form])
            candidates = [each for each in build_candidates(config) if each.name in wanted]
            recipes = Recipes(components, groups, candidates)
            rows = opened.sensitivity[opened.sensitivity["candidate"].isin(wanted)]
            menu = menu_of(rows, opened.noise, opened.groups, recipes.weights, recipes.fixed)
            found = least_error(menu, size)
            if found is None or menu.nbytes(found.choice) < (1 - ALIKE) * size:
                raise SystemExit(f"{variant.name}: no choice of {', '.join(wanted)} has {size} bytes")
            by_size[form, size] = f"{form}_searched_{name}"
            variants[by_size[form, size]] = {"technique": recipes.nodes(menu.assigned(found.choice))}
        claims[f"SS_{variant.name}"] = _claim(variant.name, by_size[form, size], sources[variant.name])
    write_experiment(to, ABOUT.format(spec.source.checkpoint.name), variants, claims)


def _claim(published: str, searched: str, source: str) -> Mapping[str, Any]:
    return {
        "text": f"{published} drifts no more than the searched set of its size",
        "source": source,
        "metric": "drift",
        "relation": "not_larger",
        "subject": published,
        "against": searched,
        "margin": MARGIN,
    }


def write_experiment(name: str, about: str, variants: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
    """Writes conf/exp/`name`.yaml: +exp=spared_layers with these variants and claims too. about: comment lines."""
    text = yaml.safe_dump({"claims": dict(claims), "variants": dict(variants)}, sort_keys=False, width=118)
    (HERE / "conf" / "exp").mkdir(parents=True, exist_ok=True)
    (HERE / "conf" / "exp" / f"{name}.yaml").write_text(
        f"# @package _global_\n{about}defaults: [spared_layers, _self_]\nexperiment: spared_layers\n{text}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=[*FORMATS])
    parser.add_argument("--name", default=EXPERIMENT)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    main(given.scan, given.overrides, given.formats, given.name)
