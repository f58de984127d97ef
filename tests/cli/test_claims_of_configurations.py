"""Claims of a configuration: names are checked against the experiment, claims on variants left out are not made."""

import re

import pytest
import yaml
from hydra import compose

from precision_lab.cli.config import build_spec
from precision_lab.cli.paths import conf_dir
from precision_lab.errors import InputError
from tests.composing import configurations
from tests.spread import thinned


def built(*overrides):
    with configurations():
        return build_spec(compose("config", overrides=list(overrides)), [])


@pytest.mark.parametrize(
    ("override", "message"),
    thinned(
        [
            (
                "claims.S3_drift.subject=ffn_scalin",
                "Claim S3_drift: subject: unknown variant 'ffn_scalin'. Did you mean ffn_scaling",
            ),
            (
                "claims.S3_drift.against=baselin",
                "Claim S3_drift: against: unknown variant 'baselin'. Did you mean baseline",
            ),
            (
                "claims.S3_drift.noise=[reordered,reorderd]",
                "Claim S3_drift: noise: unknown variant 'reorderd'. Did you mean reordered",
            ),
            ("claims.S3_drift.metric=dirft", "Claim S3_drift: metric is 'dirft'. Did you mean drift"),
            ("claims.S3_drift.relation=bigger", "Claim S3_drift: relation is 'bigger'"),
            ("+claims.S3_drift.stream=img", "Claim S3_drift: stream means nothing for the metric drift"),
            ("+claims.S3_drift.margin=much", "Claim S3_drift: margin is 'much', expected a number of at least 0"),
            ("+claims.S3_drift.margin=-0.1", "Claim S3_drift: margin is -0.1, expected a number of at least 0"),
            ("+claims.S3_drift.margin=nan", "S3_drift.margin is nan, expected a finite number"),
            ("+claims.S3_drift.margin=inf", "S3_drift.margin is inf, expected a finite number"),
            ("+claims.S3_drift.gate=yes_please", "Claim S3_drift: gate is 'yes_please', expected true or false"),
            ("+claims.S3_drift.gate=1", "Claim S3_drift: gate is 1, expected true or false"),
            ("claims.S3_drift=null", "claims.S3_drift is None, expected settings below it"),
            ("claims.S3_drift.text=null", "Claim S3_drift: text is None, expected text"),
            ("claims.S3_drift.subject=[a]", "Claim S3_drift: subject is ['a'], expected text"),
        ],
        keep=5,
    ),
)
def test_mistakes_are_named_with_the_nearest(override, message):
    with pytest.raises(InputError) as caught:
        built("+exp=ffn_scaling", override)
    assert message in str(caught.value)


def test_a_claim_about_a_device_is_none_about_a_run():
    with pytest.raises(InputError, match="Claim S6: metric narrow_operations is that of a device"):
        built("+exp=ffn_scaling", "+claim@claims=s6", "claims.S6.subject=baseline")


def test_the_reference_may_be_compared_with():
    spec = built("+exp=ffn_scaling", "claims.S3_ffn_amax.against=reference")
    assert {claim["id"]: claim for claim in spec.claims}["S3_ffn_amax"]["against"] == "reference"


@pytest.mark.parametrize(
    ("only", "expected"),
    thinned(
        [
            ("[baseline,ffn_scaling,reordered]", {"S3_ffn_amax", "S3_stream_amax", "S3_drift"}),
            ("[baseline,ffn_scaling]", set()),
            ("[baseline,reordered]", set()),
            (
                "null",
                {
                    "S1_drift",
                    "S1_latency",
                    "S2_drift",
                    "S2_latency",
                    "S3_ffn_amax",
                    "S3_stream_amax",
                    "S3_drift",
                    "S5_overflow",
                },
            ),
            ("[float16]", {"S5_overflow"}),
            ("[baseline,fp32_norm_out]", {"S1_latency"}),
        ],
        keep=3,
    ),
)
def test_claims_on_variants_left_out_are_not_made(only, expected):
    spec = built("+exp=findings", f"only={only}")
    assert {claim["id"] for claim in spec.claims} == {needed.claim for needed in spec.evidence} == expected


def test_a_typo_is_refused_where_its_claim_would_be_left_out():
    with pytest.raises(InputError, match="unknown variant 'fp32_norm_uot'"):
        built("+exp=findings", "only=[float16]", "claims.S1_drift.subject=fp32_norm_uot")


def test_the_text_of_a_claim_has_signs_and_no_substitutes_for_them():
    texts = {
        f"{file.name} {name}": claim["text"]
        for file in sorted((conf_dir() / "claim").glob("*.yaml"))
        for name, claim in yaml.safe_load(file.read_text(encoding="utf-8")).items()
        if isinstance(claim, dict) and "text" in claim
    }
    assert len(texts) > 30
    assert not [where for where, text in texts.items() if re.search(r"\+-|\+/-|[<>]=|->|\d x \d", text)]
