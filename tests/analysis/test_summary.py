"""The summary of a run: pictures, near misses, and the main stream of whatever layout the run has."""

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.summary import NEAREST, exit_code, failures, summarize
from precision_lab.lab.folder import save_image
from precision_lab.record.files import read_json
from precision_lab.record.manifest import Checkpoint, Storage, VariantEntry
from precision_lab.record.summary import Quantity, Summary
from tests.fabricated import LANGUAGE_MODEL, PLAIN, QWEN_IMAGE, run_of


def summary_of(run, name="variant"):
    """The entry of a variant, as it is read from the file."""
    summarize(run)
    summary = Summary.read(run.path)
    assert summary is not None
    return summary.variants[name]


@pytest.mark.parametrize("spoilt", ["variant", "reference"])
def test_a_picture_with_a_value_that_is_not_finite_has_no_psnr(tmp_path, spoilt):
    rng = np.random.default_rng(0)
    for name in ("variant", "reference"):
        for seed in (0, 1):
            pixels = rng.uniform(0, 255, (16, 16, 3)).astype(np.float32)
            if name == spoilt and seed == 1:
                pixels[3, 4, 1] = np.nan
            save_image(tmp_path / "images" / f"{name}__p0__s{seed}.png", pixels)
    variant = summary_of(run_of({}, ["variant"], tmp_path))
    assert (variant.psnr_db, variant.ssim) == (Quantity(None, "nonfinite"),) * 2
    entry = read_json(tmp_path / "summary.json")["variants"]["variant"]
    assert (entry["psnr_db"], entry["psnr_db_reason"]) == (None, "nonfinite")


def test_finite_pictures_have_one(tmp_path):
    pixels = np.full((16, 16, 3), 100.0, np.float32)
    save_image(tmp_path / "images" / "reference__p0__s0.png", pixels)
    save_image(tmp_path / "images" / "variant__p0__s0.png", pixels + 10)
    assert summary_of(run_of({}, ["variant"], tmp_path)).psnr_db.value == pytest.approx(20 * np.log10(25.5))
    without = summary_of(run_of({}, ["variant"], tmp_path, layout=PLAIN))
    assert (without.psnr_db, without.ssim) == (Quantity(None, "no picture"),) * 2


def test_what_the_weights_of_a_variant_take(tmp_path):
    stored = {"transformer": Storage(1024, 576, 4.5), "vae": Storage(64, 128, 16.0)}
    variant = summary_of(run_of({}, {"variant": VariantEntry("bfloat16", weights=stored)}, tmp_path))
    assert variant.model_bytes == Quantity(704)
    assert (variant.weight_bytes, variant.bits_per_weight) == (Quantity(576), Quantity(4.5))
    reference = summary_of(run_of({}, ["variant"], tmp_path), "reference")
    assert reference.weight_bytes == reference.bits_per_weight == Quantity(None, "not recorded")


def picture_pairs(folder, offsets):
    """A picture of the reference for each offset, and one of the variant that is off by it everywhere, or by noise."""
    for prompt, offset in enumerate(offsets):
        pixels = np.random.default_rng(prompt).uniform(60, 190, (16, 16, 3)).astype(np.float32).round()
        save_image(folder / "images" / f"reference__p{prompt}__s0.png", pixels)
        save_image(folder / "images" / f"variant__p{prompt}__s0.png", pixels + offset)


def decibels(offset):
    return 20 * np.log10(255 / offset)


@pytest.mark.parametrize(
    ("offsets", "psnr"),
    [
        ([0, 0, 0, 60], Quantity(None, "identical")),
        ([60, 0, 0], Quantity(None, "identical")),
        ([0], Quantity(None, "identical")),
        ([0, 0, 60, 30], Quantity(pytest.approx(decibels(30)))),  # half of them: the better of those that differ
        ([0, 0, 60, 30, 10], Quantity(pytest.approx(decibels(10)))),
        ([0, 20, 60, 30], Quantity(pytest.approx((decibels(20) + decibels(30)) / 2))),
        ([5, 20, 60], Quantity(pytest.approx(decibels(20)))),
    ],
    ids=str,
)
def test_identical_pictures_are_the_best_of_a_median(tmp_path, offsets, psnr):
    picture_pairs(tmp_path, offsets)
    variant = summary_of(run_of({}, ["variant"], tmp_path))
    assert variant.psnr_db == psnr
    entry = read_json(tmp_path / "summary.json")["variants"]["variant"]
    assert entry.get("psnr_db_reason") == (psnr.reason or None)
    if offsets.count(0) > len(offsets) / 2:
        assert variant.ssim.value == 1


def test_near_misses_are_counted_and_the_nearest_described(tmp_path):
    place = {"variant": "variant", "prompt_id": 0, "seed": 3, "component": "transformer", "port": "out", "num_nan": 0}
    rows = [
        place | {"site": f"s{i}", "branch": "cond", "step": 1, "dtype": "float16", "amax": amax, "num_inf": 0}
        for i, amax in enumerate([1.0, *(40000.0 + 1000 * n for n in range(NEAREST + 2))])
    ]
    rows.append(
        place | {"site": "latents", "branch": None, "step": None, "dtype": "float16", "amax": 65504.0, "num_inf": 0}
    )
    found = summary_of(run_of({"activations": pd.DataFrame(rows)}, ["variant"], tmp_path)).near_misses
    assert found.count == NEAREST + 3
    assert len(found.nearest) == NEAREST
    first = found.nearest[0]
    assert (first.component, first.site, first.port, first.branch, first.step) == (
        "transformer",
        "latents",
        "out",
        None,
        None,
    )
    assert (first.prompt_id, first.seed, first.format, first.headroom_bits) == (0, 3, "float16", 0.0)
    bits = [miss.headroom_bits for miss in found.nearest]
    assert bits == sorted(bits)
    assert found.nearest[1].step == 1
    none = summary_of(run_of({"activations": pd.DataFrame(rows[:1])}, ["variant"], tmp_path)).near_misses
    assert (none.count, list(none.nearest)) == (0, [])


def outputs(layout, amax, num_inf=0):
    """Outputs of the last block with this amax, beside larger ones of other blocks, ports and components."""
    main = layout.streams[layout.main_stream].port if layout.main_stream else "out"
    end = layout.last_block or "end"
    places = [(layout.default, end, main, amax), (layout.default, "elsewhere", main, 1e30), ("other", end, main, 1e30)]
    place = {"variant": "variant", "prompt_id": 0, "seed": 0, "branch": None, "step": 0, "dtype": "float32"}
    return pd.DataFrame(
        [
            {**place, "component": component, "site": site, "port": port, "order": order}
            | {"amax": value, "num_nan": 0, "num_inf": num_inf * (value == amax)}
            for order, (component, site, port, value) in enumerate([*places, (layout.default, end, "out.7", 1e30)])
        ]
    )


@pytest.mark.parametrize(
    ("layout", "num_inf", "expected"),
    [
        (QWEN_IMAGE, 0, Quantity(5.0)),
        (QWEN_IMAGE, 2, Quantity(None, "non-finite values")),
        (LANGUAGE_MODEL, 0, Quantity(5.0)),
        (PLAIN, 0, Quantity(None, "no blocks")),
    ],
    ids=["two streams", "not finite", "one stream", "no blocks"],
)
def test_amax_is_that_of_the_main_stream_after_the_last_block(tmp_path, layout, num_inf, expected):
    table = outputs(layout, 5.0, num_inf)
    variant = summary_of(run_of({"activations": table}, ["variant"], tmp_path, layout=layout))
    assert variant.amax_final == expected
    assert variant.num_nonfinite == Quantity(num_inf)
    assert (variant.first_nonfinite is None) == (num_inf == 0)


def test_logits_have_a_divergence(tmp_path):
    rows = [
        {"variant": "variant", "mode": "free", "prompt_id": 0, "seed": seed, "step": step}
        | {"component": "model", "site": ".", "rel_l2": 0.1, "kl": (seed + 1) * (step + 1)}
        for seed in range(3)
        for step in range(2)
    ]
    variant = summary_of(run_of({"drift": pd.DataFrame(rows)}, ["variant"], tmp_path, layout=LANGUAGE_MODEL))
    assert variant.metrics == {"kl": Quantity(3.0)}, "the median over seeds of the mean over steps"
    assert variant.latent_rel_l2 == Quantity(0.1)
    none = summary_of(run_of({}, ["variant"], tmp_path, layout=LANGUAGE_MODEL))
    assert none.metrics == {"kl": Quantity(None, "not measured")}
    assert summary_of(run_of({"drift": pd.DataFrame(rows)}, ["variant"], tmp_path, layout=PLAIN)).metrics == {}


def test_what_was_not_measured_has_its_reason(tmp_path):
    checkpoint = Checkpoint("micro", "there", "f1", "synthetic", notes=["stream x4096"])
    summarize(run_of({}, ["variant"], tmp_path, checkpoint=checkpoint))
    record = read_json(tmp_path / "summary.json")
    assert (record["weights"], record["notes"]) == ("synthetic", ["stream x4096"])
    entry = record["variants"]["variant"]
    undefined = ("amax_final", "latent_rel_l2", "psnr_db", "ssim", "num_nonfinite", "near_misses", "latency")
    assert {entry[name] for name in (*undefined, "peak_memory_bytes")} == {None}
    assert all(entry[f"{name}_reason"] for name in (*undefined, "peak_memory_bytes"))


@pytest.mark.parametrize(
    ("gate", "expect", "error", "code"),
    [(False, "any", None, 0), (True, "any", None, 1), (False, "finite", None, 1), (False, "any", "it raised", 1)],
)
def test_exit_codes(tmp_path, gate, expect, error, code):
    claim = {"id": "C", "text": "t", "source": "s", "subject": "variant", "metric": "nonfinite", "relation": "zero"}
    run = run_of(
        {"activations": outputs(QWEN_IMAGE, 5.0, num_inf=1)},
        {"variant": VariantEntry("bfloat16", expect=expect)},
        tmp_path,
        claims=[{**claim, "gate": gate}],
        errors={"variant": error} if error else {},
    )
    assert exit_code(run, summarize(run)) == code


DRIFT = {"id": "C", "text": "t", "source": "s", "metric": "drift", "subject": "variant", "against": "other"}


def judged_drift(folder, variant, other=(0.1, 0.1, 0.1, 0.1), prompts=4, noise=(), **claim):
    """The reasons of a failure in a run with one gated claim on drifts by prompt."""
    drifts = {"variant": variant, "other": other, "equal": noise or other}
    rows = [
        {"variant": name, "mode": "free", "prompt_id": prompt, "seed": 0, "step": 1, "rel_l2": values[prompt]}
        | {"component": "pipeline", "site": "euler_step"}
        for name, values in drifts.items()
        for prompt in range(min(prompts, len(values)))
    ]
    stated = {**DRIFT, "relation": "larger", "gate": True, **({"noise": "equal"} if noise else {}), **claim}
    run = run_of({"drift": pd.DataFrame(rows)} if rows else {}, list(drifts), folder, claims=[stated])
    return failures(run, summarize(run))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"variant": (0.3, 0.31, 0.29, 0.3)}, None),
        ({"variant": (0.3, 0.31, 0.29, 0.3), "relation": "smaller"}, "claim C is refuted"),
        ({"variant": (0.3, 0.31, 0.29, 0.3), "relation": "smaller", "gate": False}, None),
        ({"variant": (0.3, 0.01, 0.1, 4.0)}, None),  # the interval is too wide
        ({"variant": (0.11, 0.112, 0.111, 0.11), "noise": (0.2, 0.05, 0.2, 0.05)}, None),  # below the floor
        ({"variant": ()}, "claim C could not be judged: nothing was measured of variant variant"),
        ({"variant": (0.3, np.nan, 0.3, 0.3)}, "claim C could not be judged: undefined or non-finite values"),
        ({"variant": (0.3, 0.0, 0.3, 0.3)}, "claim C could not be judged: undefined or non-finite values"),
        (
            {"variant": (0.3, 0.31, 0.29, 0.3), "prompts": 2},
            "claim C could not be judged: too few prompts: 2, expected",
        ),
        (
            {"variant": (0.3, 0.31, 0.29, 0.3), "noise": (0.1, np.nan, 0.1, 0.1)},
            "claim C could not be judged: the noise floor is undefined",
        ),
        ({"variant": (0.3, 0.31, 0.29, 0.3), "metric": "latency"}, "claim C could not be judged: nothing was measured"),
        ({"variant": (), "gate": False}, None),
    ],
    ids=str,
)
def test_a_gated_claim_that_cannot_be_judged_does_not_pass(tmp_path, case, reason):
    found = judged_drift(tmp_path, **case)
    assert len(found) == (reason is not None)
    if reason:
        assert found[0].startswith(reason)


def test_what_a_claim_could_not_be_judged_for_is_in_the_file(tmp_path):
    judged_drift(tmp_path, variant=(0.3, 0.31, 0.29, 0.3), prompts=2)
    (entry,) = read_json(tmp_path / "summary.json")["claims"]
    assert entry["effect"] == pytest.approx((0.3 * 0.31) ** 0.5 / 0.1)
    assert entry["verdict_reason"] == entry["ci95_reason"] == "too few prompts: 2, expected at least 3"


def test_psnr_is_compared_as_the_error_that_it_is_of(tmp_path):
    """Errors of 10, 20, 10 and 20 against those of 20, 40, 20 and 40: half, which is 6 dB more, in every prompt."""
    offsets = {"variant": (10, 20, 10, 20), "other": (20, 40, 20, 40), "equal": (22, 44, 22, 44)}
    for prompt in range(4):
        save_image(tmp_path / "images" / f"reference__p{prompt}__s0.png", np.full((16, 16, 3), 100, np.float32))
        for name, own in offsets.items():
            shifted = np.full((16, 16, 3), 100 + own[prompt], np.float32)
            save_image(tmp_path / "images" / f"{name}__p{prompt}__s0.png", shifted)
    stated = {**DRIFT, "metric": "psnr_db", "relation": "larger"}
    bound = {**stated, "against": None, "bound": 25.0}
    claims = [stated, {**stated, "margin": 6.1}, {**stated, "noise": "equal"}, bound, {**bound, "bound": 35.0}]
    run = run_of({}, list(offsets), tmp_path, claims=[{**claim, "id": str(i)} for i, claim in enumerate(claims)])
    entries = summarize(run).claims
    assert [entry.verdict for entry in entries] == ["supported", "refuted", "supported", "inconclusive", "refuted"]
    six = 20 * np.log10(2)
    assert [entry.effect.value for entry in entries[:3]] == pytest.approx([six] * 3)
    assert entries[0].ci95 == pytest.approx((six, six))
    assert entries[2].noise_floor.value == pytest.approx(20 * np.log10(1.1))
    mean = decibels(np.sqrt(200))
    for entry in entries[3:]:
        assert entry.effect.value == pytest.approx(mean), "the quantity itself beside a bound"
        assert entry.ci95[0] < mean < entry.ci95[1]


def test_identical_pictures_count_as_one_value_off_by_one(tmp_path):
    picture_pairs(tmp_path, [0, 0, 0, 0])
    stated = {**DRIFT, "metric": "psnr_db", "relation": "larger", "against": None, "bound": 40.0}
    (entry,) = summarize(run_of({}, ["variant"], tmp_path, claims=[stated])).claims
    assert entry.verdict == "supported"
    assert entry.effect.value == pytest.approx(10 * np.log10(255**2 * 16 * 16 * 3))
