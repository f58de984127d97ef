"""Two runs side by side: shared variants, and arrays of the same address and moment."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.compare import headline, range_changes
from precision_lab.errors import InputError
from precision_lab.record.manifest import VariantEntry
from tests.fabricated import ENVIRONMENT, LANGUAGE_MODEL, PLAIN, run_of


def activations(factor=1.0, site="head", branch=None):
    """Two steps of one site whose second step is multiplied."""
    place = {"variant": "a", "prompt_id": 0, "seed": 0, "branch": branch, "component": "net", "site": site}
    rows = [{**place, "step": step, "amax": 2.0 * factor**step} for step in (0, 1)]
    return pd.DataFrame(rows).assign(port="out", dtype="float32", num_nan=0, num_inf=0, order=0)


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


def test_runs_without_a_variant_in_common_are_refused(run):
    first, second = run("first"), run("second")
    alone = replace(second, manifest=replace(second.manifest, variants={"b": VariantEntry("float32")}))
    with pytest.raises(InputError, match="no variant in common"):
        headline(first, alone)
