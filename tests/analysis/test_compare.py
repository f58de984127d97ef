"""Two runs side by side: shared variants, and arrays of the same address, prompt and moment."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.compare import headline, range_changes
from precision_lab.errors import InputError
from precision_lab.record.manifest import VariantEntry
from tests.fabricated import ENVIRONMENT, LANGUAGE_MODEL, PLAIN, run_of


def activations(factor=1.0, site="head", branch=None, prompt_id=0, order=0):
    """Two steps of one site whose second step is multiplied; no amax, but a NaN, where the factor is infinite."""
    place = {"variant": "a", "prompt_id": prompt_id, "seed": 0, "branch": branch, "component": "net", "site": site}
    rows = []
    for step in (0, 1):
        lost = bool(step) and not np.isfinite(factor)
        amax = np.nan if lost else 2.0 * factor**step
        rows.append({**place, "step": step, "amax": amax, "num_nan": int(lost), "num_inf": 2 * lost, "order": order})
    return pd.DataFrame(rows).assign(port="out", dtype="float32")


@pytest.fixture
def run(tmp_path):
    """Makes runs of a model without branches, blocks and pictures."""

    def make(name, variants=("a",), layout=PLAIN, **about):
        tables = {key: about.pop(key) for key in ("activations", "drift", "latency") if key in about}
        (tmp_path / name).mkdir()
        return run_of(tables, variants, tmp_path / name, layout=layout, **about)

    return make


def test_the_largest_change_of_an_address_leads(run):
    first = run("first", activations=pd.concat([activations(), activations(site="other")]))
    changed = pd.concat([activations(8.0), activations(1.5, site="other"), activations(site="new")])
    found = range_changes(first, run("second", activations=changed))
    assert found["site"].tolist() == ["head", "other"]
    assert found["log2_amax"].tolist() == pytest.approx([3.0, np.log2(1.5)])


def test_arrays_that_are_newly_not_finite_come_first_in_order_of_execution(run):
    before = pd.concat([activations(site=site) for site in ("large", "late", "early", "same")])
    after = [activations(2.0**40, site="large"), activations(np.inf, site="late", order=9)]
    after += [activations(np.inf, site="early", order=3), activations(site="same")]
    found = range_changes(run("first", activations=before), run("second", activations=pd.concat(after)))
    assert found["site"].tolist() == ["early", "late", "large", "same"]
    assert found["nonfinite_change"].tolist() == [3, 3, 0, 0]
    assert found["log2_amax"].tolist() == pytest.approx([np.nan, np.nan, 40.0, 0.0], nan_ok=True)


def test_arrays_that_are_finite_again_come_before_changes_of_range(run):
    before = pd.concat(
        [activations(np.inf, site="healed"), activations(np.inf, site="both"), activations(site="large")]
    )
    after = pd.concat([activations(site="healed"), activations(np.inf, site="both"), activations(1024.0, site="large")])
    found = range_changes(run("first", activations=before), run("second", activations=after)).set_index("site")
    assert found.index.tolist() == ["healed", "large", "both"]
    assert found["nonfinite_change"].to_dict() == {"healed": -3, "large": 0, "both": 0}


def test_a_range_that_begins_or_ends_at_zero_is_the_largest_change(run):
    zero, some = activations().assign(amax=0.0), activations()
    names = ("grows", "vanishes", "stays")
    before = pd.concat([frame.assign(site=name) for frame, name in zip((zero, some, zero), names, strict=True)])
    after = pd.concat([frame.assign(site=name) for frame, name in zip((some, zero, zero), names, strict=True)])
    found = range_changes(run("first", activations=before), run("second", activations=after)).set_index("site")
    assert found["log2_amax"].to_dict() == {"grows": np.inf, "vanishes": -np.inf, "stays": 0.0}
    assert found.index[-1] == "stays"


def test_prompts_are_matched_by_their_text(run):
    first = run("first", activations=pd.concat([activations(), activations(4.0, prompt_id=1)]), prompts=["x", "y"])
    again = pd.concat([activations(4.0), activations(16.0, prompt_id=1)])
    found = range_changes(first, run("second", activations=again, prompts=["y", "z"]))
    assert found["log2_amax"].tolist() == [0.0], "prompt y has number 1 in the first run and 0 in the second"
    assert range_changes(first, run("third", activations=again, prompts=["v", "w"])).empty


@pytest.mark.parametrize("branch", [None, "cond"])
def test_arrays_of_the_same_moment_are_compared(run, branch):
    first, second = (run(name, activations=activations(branch=branch)) for name in ("first", "second"))
    assert range_changes(first, second)["log2_amax"].tolist() == [0.0]


def latency(seconds):
    rows = [{"variant": "a", "round": n, "what": "step", "seconds": seconds} for n in range(3)]
    return pd.DataFrame(rows).assign(peak_memory_bytes=1000)


@pytest.mark.parametrize(("device", "timed"), [(ENVIRONMENT.device, True), ("another", False)])
def test_times_are_compared_on_the_same_device_alone(run, device, timed):
    first = run("first", latency=latency(1.0), variants=("a", "b"))
    second = run("second", latency=latency(2.0), environment=replace(ENVIRONMENT, device=device))
    found = headline(first, second)
    assert set(found["variant"]) == {"reference", "a"}
    assert ("latency_s" in set(found["quantity"])) is timed


def test_metrics_of_the_result_are_compared(run):
    place = {"variant": "a", "mode": "free", "prompt_id": 0, "seed": 0, "step": 0, "component": "model", "site": "."}
    drift = pd.DataFrame([{**place, "rel_l2": 0.1, "kl": 0.25}])
    first, second = (run(name, drift=drift, layout=LANGUAGE_MODEL) for name in ("first", "second"))
    found = headline(first, second).query("variant == 'a' and quantity == 'kl'")
    assert found[["first", "second"]].to_numpy().tolist() == [[0.25, 0.25]]


def test_nothing_is_written(run):
    first, second = run("first"), run("second")
    headline(first, second)
    range_changes(first, second)
    assert not [*first.path.iterdir(), *second.path.iterdir()]


def test_runs_without_a_variant_in_common_are_refused(run):
    first, second = run("first"), run("second")
    alone = replace(second, manifest=replace(second.manifest, variants={"b": VariantEntry("float32")}))
    with pytest.raises(InputError, match="no variant in common"):
        headline(first, alone)
