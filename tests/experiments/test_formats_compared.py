"""The figure of formats: every variant has a family, labels keep their distance, and partial coverage is left out."""

import numpy as np
import pytest
from hydra import compose

from experiments.formats import figure
from experiments.formats.table import K_QUANTS, SUPER_BLOCK
from precision_lab.cli.config import build_spec
from precision_lab.model.codings.gguf import super_blocks
from tests.composing import configurations


@pytest.fixture(scope="module")
def spec():
    with configurations():
        return build_spec(compose("config", overrides=["+exp=formats_256"]), [])


def test_the_noise_floor_of_a_claim_is_the_twin_of_what_it_is_against(spec):
    floors = {claim["against"]: claim["noise"] for claim in spec.claims if claim.get("noise")}
    assert floors
    assert floors == {against: f"{against}_twin" for against in floors}


def test_every_variant_that_changes_a_format_has_a_family(spec):
    others = {"baseline", "bfloat16", "baseline_twin", "q8_0_twin", "int8_inputs_twin", spec.reference.name}
    names = {variant.name for variant in spec.variants} - others
    assert all(figure._family(name) for name in names)
    assert not figure._family("bfloat16")


def test_the_k_quants_that_do_not_fit_every_linear_are_known():
    for name in K_QUANTS:
        coding = getattr(super_blocks, name.upper())()
        assert coding.unfit((64, SUPER_BLOCK)) is None
        assert coding.unfit((64, SUPER_BLOCK // 2)) is not None


@pytest.mark.parametrize("seed", range(4))
def test_labels_keep_their_order_and_distance_and_move_no_more_than_needed(seed):
    wanted = np.sort(np.random.default_rng(seed).uniform(0, 30, 12))
    places = figure._beside(wanted, np.array([]), 2.0)
    assert np.diff(places).min() >= 2.0 - 1e-9
    assert figure._beside(3 * wanted[::6], np.array([]), 2.0) == pytest.approx(list(3 * wanted[::6]))
    assert np.mean(places) == pytest.approx(np.mean(wanted))  # of least squares: what moves up balances what moves down


@pytest.mark.parametrize("seed", range(4))
def test_labels_keep_their_distance_from_marks(seed):
    rng = np.random.default_rng(seed)
    wanted, marks = np.sort(rng.uniform(0, 30, 8)), np.array([5.0, 25.0]) + rng.uniform(-1, 1, 2)
    places = np.array(figure._beside(wanted, marks, 2.0))
    assert np.diff(places).min() >= 2.0 - 1e-9
    assert np.abs(places[:, None] - marks).min() >= 2.0 - 1e-3


def test_a_variant_that_covers_fewer_weights_is_not_drawn():
    def own(share):
        return {"share": share, "own_bits": 4.5, "bits": 6.0, "drift": 0.1}

    shown = figure.shown_of({"q4_0": own(0.9), "q4_k": own(0.2), "bfloat16": own(None), "affine4": own(None)})
    assert shown == {"q4_0": (4.5, 0.1), "affine4": (4.5, 0.1)}
