"""A run is refused whose claims rest on something that it will not record."""

from dataclasses import dataclass

import mlx.nn as nn
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.lab import evidence
from precision_lab.lab.spec import Evidence
from precision_lab.probes.contributions import Contributions
from precision_lab.probes.ranges import RangeCatalogue
from tests.fabricated import LANGUAGE_MODEL, QWEN_IMAGE


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.img_mlp = nn.Linear(2, 2)
        self.txt_mlp = nn.Linear(2, 2)
        self.attn = nn.Linear(2, 2)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = [Block() for _ in range(4)]
        self.norm_out = nn.RMSNorm(2)


class Undeclared:
    """A third party's probe, which does not say what it adds."""

    sites = ("norm_out",)
    ports = ("out",)

    def measure(self, x):
        return {"amax": 0.0}


@dataclass
class Spec:
    evidence: list
    probes: dict
    drift_sites: tuple = ("transformer_blocks.*",)
    seeds: tuple = (0,)


AMAX = {"claim": "C", "metric": "amax", "columns": ("amax", "num_nan", "num_inf")}
DRIFT = {"claim": "C", "metric": "drift", "drift": True}
RANGES = {"range": RangeCatalogue(["transformer_blocks.*", "transformer_blocks.*.{img,txt}_mlp"])}


def check(needed, probes=None, layout=QWEN_IMAGE, **changes):
    components = {"transformer": Transformer()}
    sites = walk(components)
    sites = [type(site)(site.component, site.path, site.module, layout, site.spelled, site.default) for site in sites]
    evidence.check(Spec([needed], RANGES if probes is None else probes, **changes), layout, sites)


@pytest.mark.parametrize(
    "needed",
    [
        Evidence(**AMAX, sites=("transformer_blocks.*.img_mlp",)),
        Evidence(**AMAX, sites=("transformer_blocks.{0..2}", "transformer_blocks.-1.*"), stream="img"),
        Evidence(**AMAX, sites=("transformer_blocks.*.txt_mlp",), stream="txt"),
        Evidence(**DRIFT, sites=("transformer_blocks.-1",)),
        Evidence(**DRIFT),
        Evidence("C", "nonfinite", columns=("num_nan", "num_inf")),
        Evidence("C", "latency"),
        Evidence("C", "psnr_db", picture=True),
    ],
    ids=str,
)
def test_what_is_observed_is_accepted(needed):
    check(needed)


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        (Evidence(**AMAX, sites=("transformer_blocks.*.img_mpl",)), r"Claim C: sites: .*matches nothing.*img_mlp"),
        (Evidence(**AMAX, sites=("norm_out",)), r"Claim C: sites 'norm_out' matches nothing that this run observes"),
        (Evidence(**AMAX, sites=("transformer_blocks.*.attn",)), r"nothing that this run observes for the metric amax"),
        (Evidence(**AMAX, sites=("transformer_blocks.*", "norm_outt")), r"norm_outt.*Did you mean norm_out"),
        (Evidence(**AMAX, sites=("vea:decoder",)), r"unknown component 'vea'"),
        (
            Evidence(**AMAX, sites=("transformer_blocks.*",), stream="image"),
            r"unknown stream 'image' of this model. Did you mean img.*Or leave the claim out: '~claims\.",
        ),
        (Evidence(**AMAX, sites=("transformer_blocks.*.img_mlp",), stream="txt"), r"belongs to the stream 'txt'"),
        (Evidence(**DRIFT, sites=("transformer_blocks.*.img_mlp",)), r"nothing that this run observes for the metric"),
        (Evidence("S4", "largest_share", columns=("final_share",)), r"Claim S4: .* needs the columns final_share"),
        (Evidence("C", "kl", distribution=True), r"needs logits, the result of this model is its latents"),
    ],
    ids=str,
)
def test_what_is_not_observed_is_refused_by_name(needed, message):
    with pytest.raises(InputError, match=message):
        check(needed)


def test_a_probe_must_see_outputs_and_add_the_columns():
    needed = Evidence(**AMAX, sites=("norm_out",))
    inputs = {"range": RangeCatalogue(["norm_out"], ports=["in"])}
    for probes in ({}, inputs, {"shares": Contributions(["norm_out"])}):
        with pytest.raises(InputError, match="no probe of this run adds"):
            check(needed, probes)
    check(needed, {"own": Undeclared()})


def test_the_basin_needs_several_seeds():
    with pytest.raises(InputError, match=r"basin_left needs at least 2 seeds.*this run has 1.*'~claims\.C'"):
        check(Evidence("C", "basin_left", picture=True, seeds=2))
    check(Evidence("C", "basin_left", picture=True, seeds=2), seeds=(0, 1))


def test_a_model_without_pictures_has_no_psnr():
    with pytest.raises(InputError, match="needs pictures, the result of this model is its logits"):
        check(Evidence("C", "psnr_db", picture=True), layout=LANGUAGE_MODEL)
