"""The last lines of a run: words of the layout and the notes of the weights."""

import pandas as pd
import pytest
from rich.console import Console

from precision_lab.analysis.summary import summarize
from precision_lab.cli.compare_tables import with_addresses
from precision_lab.cli.summary import print_summary
from precision_lab.record.manifest import Checkpoint
from tests.fabricated import LANGUAGE_MODEL, QWEN_IMAGE, run_of


def said(run):
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        print_summary(summarize(run), run.layout, console)
    return captured.get()


@pytest.mark.parametrize(
    ("weights", "shown"),
    [
        ("synthetic", "generated, untrained weights, stream x4096"),
        ("trained", "trained weights, not the published ones, stream x4096"),
        ("fine-tuned", "fine-tuned, stream x4096"),
    ],
)
def test_weights_and_notes_are_in_the_title(tmp_path, weights, shown):
    checkpoint = Checkpoint("micro", "there", "f1", weights, notes=["stream x4096"])
    assert f"fabricated ({shown})" in said(run_of({}, ["a"], tmp_path, checkpoint=checkpoint))


def test_results_and_metrics_are_those_of_the_layout(tmp_path):
    place = {"variant": "a", "mode": "free", "prompt_id": 0, "seed": 0, "step": 0, "component": "model", "site": "."}
    drift = pd.DataFrame([{**place, "rel_l2": 0.125, "kl": 0.25}])
    lines = said(run_of({"drift": drift}, ["a"], tmp_path, layout=LANGUAGE_MODEL)).splitlines()
    assert "logits rel_l2" in lines[1]
    assert "kl" in lines[1].split()
    (row,) = (line for line in lines if line.startswith("a "))
    assert {"0.125", "0.25"} <= set(row.split())
    plain = said(run_of({}, ["a"], tmp_path))
    assert "latents rel_l2" in plain
    assert "kl" not in plain.split()


@pytest.mark.parametrize(
    ("component", "port", "address"),
    [("transformer", "out", "site"), ("transformer", "out.1", "site (out.1)"), ("vae", "out", "vae:site")],
)
def test_an_address_is_spelled_as_a_pattern(tmp_path, component, port, address):
    row = {"variant": "a", "prompt_id": 0, "seed": 0, "branch": None, "step": 3, "component": component}
    row |= {"site": "site", "port": port, "dtype": "float16", "amax": None, "num_nan": 5, "num_inf": 2, "order": 0}
    text = said(run_of({"activations": pd.DataFrame([row])}, ["a"], tmp_path, layout=QWEN_IMAGE))
    assert f"7, {address} step 3" in text
    place = pd.DataFrame([{"variant": "a", "component": component, "site": "site", "port": port, "log2_amax": 1.0}])
    assert with_addresses(place, QWEN_IMAGE).to_dict("records") == [{"variant": "a", "site": address, "log2_amax": 1.0}]
