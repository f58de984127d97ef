"""Measures of pictures in the summary and in claims, and the basin, from the files of a run alone."""

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis import basin
from precision_lab.analysis.claims import Claim, judge
from precision_lab.analysis.pictures import measure, measured
from precision_lab.analysis.summary import summarize
from precision_lab.cli.claims import build_claims
from precision_lab.errors import InputError
from precision_lab.lab.folder import save_image
from precision_lab.numerics.pictures import MEASURES, PictureMeasure
from precision_lab.record.files import read_json
from precision_lab.record.manifest import VariantEntry
from precision_lab.record.summary import Quantity, Summary
from tests.fabricated import LANGUAGE_MODEL, run_of
from tests.trajectories import distances, levels_of, scene, trajectory

PROMPTS, SEEDS = ["a", "b", "c"], [0, 7]
CASES = [(prompt, seed) for prompt in range(3) for seed in SEEDS]
BASE = {"id": "C", "text": "t", "source": "s", "subject": "four", "against": "half"}


def base(prompt, seed):
    return scene(100 * prompt + seed)


def pictures(folder, **changes):
    """The reference's picture of every case, and by variant what `changes` makes of it."""
    for prompt, seed in CASES:
        for name, change in {"reference": lambda p, *_: p, **changes}.items():
            pixels = change(base(prompt, seed), prompt, seed).astype(np.float32)
            save_image(folder / "images" / f"{name}__p{prompt}__s{seed}.png", np.where(pixels < 0, 0, pixels))


def grain(sigma):
    def change(picture, prompt, seed):
        noise = np.random.default_rng([prompt, seed]).standard_normal(picture.shape)
        return np.clip(picture + sigma * noise, 0, 255)

    return change


def of(path, variants, tables=None, **about):
    return run_of(tables or {}, variants, path, prompts=PROMPTS, seeds=SEEDS, **about)


def test_the_summary_has_every_measure_with_its_reason(tmp_path):
    pictures(tmp_path, half=grain(1.0), four=grain(4.0), same=grain(0))
    summarize(of(tmp_path, ["half", "four", "same"]))
    summary = Summary.read(tmp_path)
    assert summary is not None
    half, four, same, reference = (summary.variants[name].pictures for name in ("half", "four", "same", "reference"))
    assert set(half) == {*MEASURES, "basin_left", "basin_step"} - {"lpips"}
    assert half["flat_grain"].value == pytest.approx(1.04, rel=0.03)
    assert four["flat_grain"].value == pytest.approx(4.01, rel=0.03)
    assert reference["flat_grain"].value == pytest.approx(0, abs=1e-9)
    assert reference["grid_8"] == reference["basin_left"] == Quantity(None, "not measured")
    assert four["grid_16"].value == pytest.approx(1, abs=0.2)
    assert four["displacement"].value < 0.1
    assert same["displacement"] == same["flat_white_drift"] == four["basin_left"] == Quantity(0.0)
    assert four["basin_step"] == Quantity(None, "none left")
    entry = read_json(tmp_path / "summary.json")["variants"]["four"]["pictures"]
    assert (entry["basin_step"], entry["basin_step_reason"]) == (None, "none left")


def test_why_a_measure_has_no_number(tmp_path):
    def broken(picture, prompt, seed):
        picture = picture.copy()
        picture[3, 4, 1] = np.nan if (prompt, seed) == (1, 7) else picture[3, 4, 1]
        return picture

    def elsewhere(picture, prompt, seed):
        return np.random.default_rng([prompt, seed]).uniform(0, 255, picture.shape)

    pictures(tmp_path, broken=broken, elsewhere=elsewhere)
    run = of(tmp_path, ["broken", "elsewhere", "absent"])
    found = summarize(run).variants
    assert {found["broken"].pictures[n].reason for n in ("flat_grain", "grid_8", "basin_left")} == {"nonfinite"}
    assert found["elsewhere"].pictures["displacement"] == Quantity(None, "no match")
    assert found["elsewhere"].pictures["basin_left"] == Quantity(1.0)
    assert found["elsewhere"].pictures["basin_step"].reason == "the latents of every step were not recorded"
    assert found["absent"].pictures["flat_grain"] == Quantity(None, "not measured")
    one_seed = run_of({}, ["elsewhere"], tmp_path, prompts=PROMPTS, seeds=[0])
    assert summarize(one_seed).variants["elsewhere"].pictures["basin_left"] == Quantity(None, "one seed")
    without = run_of({}, ["elsewhere"], tmp_path, layout=LANGUAGE_MODEL)
    assert summarize(without).variants["elsewhere"].pictures == {}


def test_a_picture_without_plain_areas_is_left_out(tmp_path):
    """It is so for every variant, since the reference's picture decides."""
    pictures(tmp_path, four=grain(4.0), half=grain(2.0))
    stripes = np.broadcast_to((80.0 * (np.arange(128) % 6 < 3) + 90)[:, None, None], (128, 160, 3)).astype(np.float32)
    for name in ("reference", "four", "half"):
        save_image(tmp_path / "images" / f"{name}__p0__s0.png", stripes)
    run = of(tmp_path, ["half", "four"])
    assert measured(run, "four", ["flat_grain"]).loc[(0, 0), "flat_grain"] == "no flat area"
    assert list(measure(run, "four", "flat_grain").index) == CASES[1:]
    assert summarize(run).variants["four"].pictures["flat_grain"].value == pytest.approx(4, rel=0.03)


@pytest.mark.parametrize(
    ("stated", "verdict", "effect"),
    [
        ({"metric": "flat_grain", "relation": "larger"}, "supported", 4.01 / 1.04),
        ({"metric": "flat_grain", "relation": "smaller", "margin": 0.1}, "refuted", 4.01 / 1.04),
        ({"metric": "flat_grain", "relation": "larger", "against": None, "bound": 2.5}, "supported", 4.01),
        ({"metric": "flat_grain", "relation": "larger", "against": "reference"}, "supported", 4.01 * 12**0.5),
        ({"metric": "grid_16", "relation": "equal", "margin": 0.2}, "supported", 1.0),
        ({"metric": "displacement", "relation": "smaller", "against": None, "bound": 0.5}, "supported", None),
        ({"metric": "basin_left", "relation": "zero", "against": None}, "supported", 0.0),
    ],
)
def test_claims_on_measures(tmp_path, stated, verdict, effect):
    pictures(tmp_path, half=grain(1.0), four=grain(4.0))
    found = judge(Claim.from_dict({**BASE, **stated}), of(tmp_path, ["half", "four"]))
    assert found.verdict == verdict, found
    if effect is not None:
        assert found.effect == pytest.approx(effect, rel=0.05)


def parted(folder, turns, levels):
    """Pictures and tables of a variant that turns to another scene at the step of each case, or never (None)."""
    activations, drift = [], []
    here, there = np.random.default_rng(1).standard_normal((2, 4096))

    def change(picture, prompt, seed):
        return picture if turns[prompt, seed] is None else base(prompt + 50, seed)

    pictures(folder, four=change)
    ref = trajectory(levels, [here] * len(levels))
    for (prompt_id, seed), turn in turns.items():
        after = len(levels) if turn is None else turn
        other = trajectory(levels, [here] * after + [there] * (len(levels) - after), noise=0.01)
        for step, distance in enumerate(distances(other, ref)):
            at = {"prompt_id": prompt_id, "seed": seed, "step": step, "component": "pipeline", "site": "euler_step"}
            norm = float(np.linalg.norm(ref[step]))
            rms = norm / np.sqrt(4096)
            own = {"sigma": levels[step], "rms": rms, "numel": 4096, "port": "out", "variant": "reference"}
            activations.append(
                {**at, **own, "amax": 1.0, "num_nan": 0, "num_inf": 0, "dtype": "float32", "branch": None}
            )
            drift.append({**at, "variant": "four", "mode": "free", "rel_l2": distance / norm})
    return {"activations": pd.DataFrame(activations), "drift": pd.DataFrame(drift)}


def test_share_and_step_of_the_generations_that_left(tmp_path):
    levels = levels_of(8, shift=2.0)
    turns = dict(zip(CASES, [2, None, 5, 3, None, None], strict=True))
    tables = parted(tmp_path, turns, levels)
    run = of(tmp_path, ["four"], tables)
    assert basin.left(run, "four").to_dict() == {case: float(turn is not None) for case, turn in turns.items()}
    steps = {case: 9 if turn is None else turn + 1 for case, turn in turns.items()}
    assert basin.steps(run, "four").to_dict() == steps
    found = summarize(run).variants["four"].pictures
    assert (found["basin_left"], found["basin_step"]) == (Quantity(0.5), Quantity(4.0))
    counted = judge(Claim.from_dict({**BASE, "metric": "basin_left", "relation": "nonzero", "against": None}), run)
    assert (counted.verdict, counted.effect) == ("supported", 3.0)
    late = {**BASE, "metric": "basin_step", "relation": "larger", "against": None, "bound": 1.5}
    assert judge(Claim.from_dict(late), run).verdict == "supported"
    lost = {**tables, "activations": tables["activations"].iloc[1:]}
    assert np.isnan(basin.steps(of(tmp_path, ["four"], lost), "four").loc[CASES[0]])


def test_a_prompt_whose_seeds_are_alike_is_left_out(tmp_path):
    pictures(tmp_path, four=grain(4.0), moved=lambda picture, prompt, seed: base(prompt + 50, seed))
    for name in ("reference", "four", "moved"):
        for seed in SEEDS:
            pixels = base(1, 0).astype(np.float32)
            save_image(tmp_path / "images" / f"{name}__p1__s{seed}.png", pixels)
    run = of(tmp_path, ["four", "moved"])
    assert set(basin.left(run, "four").loc[1]) == {"seeds alike"}
    found = summarize(run).variants
    assert (found["four"].pictures["basin_left"], found["moved"].pictures["basin_left"]) == (Quantity(0), Quantity(1))
    claim = {**BASE, "metric": "basin_left", "relation": "zero", "against": None}
    assert judge(Claim.from_dict(claim), run).verdict == "supported"


def test_a_variant_with_settings_of_its_own_is_measured_beside_its_own_reference(tmp_path):
    pictures(tmp_path, **{"turbo": grain(3.0), "reference+turbo": grain(2.0)})
    entries = {
        "reference+turbo": VariantEntry("float32", settings={"steps": 2}, reference="reference+turbo"),
        "turbo": VariantEntry("bfloat16", settings={"steps": 2}, reference="reference+turbo"),
    }
    found = summarize(of(tmp_path, entries)).variants
    assert found["turbo"].pictures["flat_grain"].value == pytest.approx(3, rel=0.05)
    assert found["reference+turbo"].pictures["flat_grain"].value == pytest.approx(2, rel=0.05)
    assert found["reference+turbo"].pictures["displacement"] == Quantity(None, "not measured")


def test_what_needs_an_extra_is_refused_by_its_name(monkeypatch):
    claim = {**BASE, "metric": "lpips", "relation": "larger"}
    del claim["id"]
    monkeypatch.setattr(PictureMeasure, "is_installed", False)
    from precision_lab.analysis import measures

    monkeypatch.setitem(measures.METRICS, "lpips", measures._of_pictures("lpips", MEASURES["lpips"]))
    with pytest.raises(InputError) as caught:
        build_claims({"C": claim}, ["four", "half"], ["four", "half"])
    assert str(caught.value) == "Claim C: metric lpips needs the extra lpips: pip install 'precision-lab[lpips]'"
    left_out, _ = build_claims({"C": {**claim, "metric": "flat_grain"}}, ["four", "half"], ["four", "half"])
    assert len(left_out) == 1


def test_a_measure_whose_extra_is_absent_has_a_reason(tmp_path, monkeypatch):
    pictures(tmp_path, four=grain(4.0))
    monkeypatch.setattr(PictureMeasure, "is_installed", property(lambda self: not self.module))
    found = summarize(of(tmp_path, ["four"])).variants["four"].pictures
    assert found["flip"] == Quantity(None, "the extra flip is not installed")
    assert found["flat_grain"].value == pytest.approx(4, rel=0.05)
