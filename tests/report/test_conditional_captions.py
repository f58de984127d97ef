"""A caption describes what is drawn: its sentences come and go with the data, in every combination of missing parts."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.search.results import Result
from precision_lab.report.figures import (
    across,
    contributions,
    culprits_search,
    device,
    exponents,
    history_lines,
    history_map,
    scales,
    search_front,
    search_map,
    sensitivity_map,
    style,
    survival_layers,
    survival_map,
)
from precision_lab.report.view import View
from tests.report.test_device_figure import ATTENTION, GROWTH, OPS, record
from tests.report.test_history_figure import STEP, recorded
from tests.report.test_range_sections import with_exponents


def combinations(*names):
    """Every combination of these flags, as keyword arguments. By default nothing and everything, as slow tests all."""
    return [
        pytest.param(
            dict(zip(names, flags, strict=True)),
            id="-".join(name for name, flag in zip(names, flags, strict=True) if flag) or "nothing",
            marks=[] if len(set(flags)) == 1 else pytest.mark.slow,
        )
        for flags in itertools.product((False, True), repeat=len(names))
    ]


def words(drawing):
    """Caption and legends."""
    legends = [*drawing.figure.legends, *(axes.get_legend() for axes in drawing.figure.axes)]
    return " | ".join(
        [drawing.caption, *(text.get_text() for legend in legends if legend for text in legend.get_texts())]
    )


def check(drawing, **expected):
    """expected: by a phrase, with _ for spaces, whether it is said of the figure."""
    said = words(drawing)
    for phrase, is_there in expected.items():
        assert (phrase.replace("_", " ") in said) == is_there, (phrase, said)
    assert "  " not in drawing.caption
    assert drawing.caption.endswith(".")


@pytest.fixture(autouse=True)
def theme():
    with style.theme():
        yield


@pytest.mark.parametrize("lack", combinations("tops", "bottoms", "txt"))
def test_exponents(small_run, lack):
    run = small_run(blocks=2, steps=1, variants=("reference",), teacher=False)
    rows = with_exponents(run, blocks=2, steps=1)
    rows["exponent"] = np.where(lack["tops"], -40, 5) if lack["bottoms"] else rows["exponent"] - 10 * lack["tops"]
    if lack["bottoms"]:
        rows["exponent"] = 40 if lack["tops"] else 14
    if lack["txt"]:
        rows = rows[(rows["stream"] == "img") | (rows["variant"] == "float16")]
    rows.to_parquet(run / "exponents.parquet")
    drawing = exponents.draw(View.open(run))
    lines = [line for axes in drawing.figure.axes for line in axes.lines]
    solid, dashed = (any(line.get_linestyle() == each for line in lines) for each in ("-", "--"))
    check(drawing, Solid_lines=solid, Dashed_lines=dashed)
    assert sum(bool(axes.get_title("left")) for axes in drawing.figure.axes) == (1 if lack["txt"] else 2)


def scan(candidates=("a4",), unfit=False, outside=False, steps=(0,), floor=1e-6):
    rows = []
    for candidate, block, operation, step in itertools.product(candidates, (0, 1), ("to_q", "mlp"), steps):
        if unfit and (block, operation) == (1, "mlp"):
            continue
        rows.append((f"{block}.{operation}", block, operation, candidate, step, 0.1 + block))
    if outside:
        rows += [("norm_out", None, "norm_out", candidate, step, 0.2) for candidate in candidates for step in steps]
    table = pd.DataFrame(rows, columns=["group", "block", "operation", "candidate", "step", "velocity_error"])
    about = {"component": "transformer", "stream": "img", "prompt_id": 0, "seed": 0, "noise_floor": floor}
    about |= {"local_error": 0.1, "num_nonfinite": 0, "free_drift": math.nan, "bytes_saved": 1, "seconds_saved": 0.0}
    return SimpleNamespace(sensitivity=table.assign(**about).astype({"block": "Int64"}))


@pytest.mark.parametrize("has", combinations("several", "unfit", "outside", "steps"))
def test_sensitivity(has):
    drawing = sensitivity_map.draw(
        scan(
            ("a4", "a8") if has["several"] else ("a4",),
            has["unfit"],
            has["outside"],
            (0, 2) if has["steps"] else (1,),
            math.nan if has["unfit"] else 1e-6,
        )
    )
    check(
        drawing,
        one_colour_scale=has["several"],
        Hatched=has["unfit"],
        On_the_right=has["outside"],
        was_not_measured=has["unfit"],
        **{"steps_0,_2": has["steps"], "step_1": not has["steps"]},
    )


@pytest.mark.parametrize("has", combinations("several", "after", "far", "gap", "stochastic"))
def test_survival(has):
    orders = ("before", "after") if has["after"] else ("before",)
    table = pd.DataFrame(
        [
            (name, order, block, operation, 0.9 - 0.1 * (name == "b"), 3.0 if has["far"] else 0.9)
            for name in (("a", "b") if has["several"] else ("a",))
            for order in orders
            for block in (0, 1)
            for operation in ("to_q", "mlp")
            if not (has["gap"] and (block, operation) == (1, "mlp"))
        ],
        columns=["format", "order", "block", "operation", "correlation", "gain"],
    ).assign(rounding="stochastic" if has["stochastic"] else "nearest")
    drawing = survival_layers.draw(table)
    check(
        drawing,
        are_drawn_at_the_edge=has["far"],
        in_the_order_of_their_correlation=has["several"],
        fused_after=has["after"],
        Rounded_stochastically=has["stochastic"],
        Rounded_to_nearest=not has["stochastic"],
    )
    check(
        survival_map.draw(table),
        White=has["gap"],
        the_median_is_least_here=has["several"] or has["after"],
        rounded_stochastically=has["stochastic"],
    )


def result(name, strategy="uniform", lo=math.nan, held_out=0.1, on_front=False, nbytes=10**6):
    return Result(name, strategy, "-", nbytes, 4.0, 0.1, 0.1, held_out, lo, 2 * lo, 30.0, 0, on_front)


@pytest.mark.parametrize("has", combinations("interval", "front", "limits", "zero", "lost"))
def test_search_front(has):
    found = [
        result("a", lo=0.05 if has["interval"] else math.nan, on_front=True),
        result("b", held_out=0.0 if has["zero"] else 0.2, on_front=has["front"], nbytes=2 * 10**6),
        *([result("c", held_out=math.nan)] if has["lost"] else []),
    ]
    findings = SimpleNamespace(limits={"6bits": 10**6} if has["limits"] else {})
    check(
        search_front.draw_front(found, findings, 2, "latents"),
        interval=has["interval"],
        joined_by_the_line=has["front"],
        Dotted=has["limits"],
        no_drift_at_all=has["zero"],
        **{"not_drawn:_3": has["lost"]},
    )


@pytest.mark.parametrize("has", combinations("greedy", "knapsack", "optuna"))
def test_search_trials(has):
    names = ["exchange", *(name for name in ("greedy", "knapsack", "optuna") if has[name])]
    rows = [(name, "6bits", number, 0.1 * number) for name in names for number in (1, 2)]
    trials = pd.DataFrame(rows, columns=["strategy", "budget", "number", "rel_l2"])
    drawing = search_front.draw_trials(trials, SimpleNamespace(limits={"6bits": 1}))
    check(
        drawing,
        Dashed=has["greedy"] or has["knapsack"],
        of_greedy=has["greedy"],
        of_the_knapsack=has["knapsack"],
        the_same_number_of_trials=has["optuna"],
    )


@pytest.mark.parametrize("has", combinations("gap", "outside", "other"))
def test_search_map(has):
    rows = [(name, block, "to_q", "a4") for name in ("r", "s") for block in ((0, 2) if has["gap"] else (0, 1))]
    rows += [("r", None, "norm_out", "a4")] * has["outside"]
    choices = pd.DataFrame(rows, columns=["recipe", "block", "operation", "candidate"]).astype({"block": "Int64"})
    drawing = search_map.draw(choices, ["r", "absent"] if has["other"] else ["r"])
    check(drawing, White=has["gap"], outside_of_the_blocks=has["outside"])
    assert [axes.get_title("left") for axes in drawing.figure.axes] == ["r"]


@pytest.mark.parametrize("has", combinations("small", "other", "failed", "promised"))
def test_scales(has):
    blocks = pd.Series(range(4), name="block")
    amax = 2.0**10 if has["small"] else 2.0**20
    chosen = pd.DataFrame({"block": blocks, "technique": "t", "parameter": "p", "site": "s", "amax": amax})
    chosen["headroom_bits"] = 1.0 if has["promised"] else math.inf
    divisors = chosen[["block", "technique", "parameter"]].assign(variant="scales", divisor=16.0)
    heldout = pd.DataFrame({"block": blocks, "divisor": 16.0, "measured_bits": 2.0})
    if has["other"]:
        heldout = pd.concat([heldout, heldout.assign(divisor=1.0)])
    if has["failed"]:
        heldout["measured_bits"] = math.nan
    evidence = SimpleNamespace(
        about={"format": "float16", "margin_bits": 1.0},
        tables={"scales": chosen, "divisors": divisors, "heldout": heldout},
    )
    check(scales.draw_scales(evidence), no_scale_is_needed=has["small"], is_not_drawn=has["small"])
    check(
        scales.draw_headroom(evidence),
        Crosses=has["failed"],
        Dots=not has["failed"],
        scaled_places=has["promised"] or not has["failed"],
        other_places=has["other"] and not has["failed"],
        promised_by_the_coverage_set=has["promised"],
    )


@pytest.mark.parametrize("has", combinations("steps", "lost", "mixed", "variants"))
def test_history(tmp_path, has):
    changes = {"runs": 6, "blocks": 1, "inner": ("attn.to_q",)}
    changes |= {"step": {"transformer:norm_out": (4, 0.75)}} if has["steps"] else {}
    changes |= {"lost": {"vae:decoder.conv_in": 5}} if has["lost"] else {}
    changes |= {"variants": tuple("abcd")} if has["variants"] else {}
    history, found = recorded(tmp_path / "gate.csv", machines=1 + has["mixed"], **changes)
    drawing = history_map.draw(history, found)
    stepped = len(found) > 0
    check(
        drawing,
        Black_bars=stepped,
        no_value=has["lost"],
        orange_where_the_gate_failed=has["steps"],
        red_has_grown=has["steps"],
        blue_has_shrunk=False,
        on_the_same_device=has["mixed"],
        Of_4_variants=has["variants"],
        **{"|_step": stepped},
    )
    lines = history_lines.draw(history, found)
    if not stepped:
        assert isinstance(lines, style.Absent)
        return
    check(lines, Dashed=True, gate_failed=has["steps"], gate_passed=True)


def test_history_of_one_site_in_runs_that_all_failed(tmp_path):
    history, found = recorded(tmp_path / "gate.csv", step=STEP)
    history.runs["verdict"] = "failed"
    history.rows["deviation_bits"] = math.nan
    one = found[found["site"] == found["site"].iloc[0]]
    check(
        history_lines.draw(history, one),
        Dashed=False,
        middle_of_the_band=False,
        gate_passed=False,
        One_panel_a_site=False,
    )


@pytest.mark.parametrize("has", combinations("many", "checks", "held", "failed"))
def test_culprits(has):
    holds = [*([True] * has["held"]), *([False] * (has["failed"] or not has["held"]))]
    runs = pd.DataFrame({"run": range(len(holds)), "stage": "search", "spared": 1, "holds": holds})
    found = SimpleNamespace(groups=60 if has["many"] else 8, checks=2 * has["checks"], runs=1)
    drawing = culprits_search.draw(runs, found)
    both = len(holds) > 1
    check(
        drawing,
        logarithmic_above=has["many"],
        dashed_line=has["checks"],
        open=both,
        does_not_hold=False in holds,
        holds_in_none=not has["held"],
        holds_in_all=has["held"] and not both,
    )


@pytest.mark.parametrize("has", combinations("sums", "sizes"))
def test_device(has):
    findings = [*(GROWTH if has["sums"] else []), *(ATTENTION if has["sizes"] else [])]
    drawing = device.draw(record(OPS, findings))
    check(
        drawing,
        error_of_a_sum=has["sums"],
        head_dimension=has["sizes"],
        Upper_right=has["sums"] and has["sizes"],
        Left=has["sums"] or has["sizes"],
        **{"red:": False, "green:_float32": has["sizes"]},
    )
    assert len(drawing.figure.axes) == 1 + has["sums"] + 2 * has["sizes"]


@pytest.mark.parametrize("has", combinations("several", "negative"))
def test_contributions(small_run, has):
    view = View.open(small_run(blocks=2, steps=1, variants=("reference",), teacher=False))
    adds = view.layout.adds if has["several"] else dict(list(view.layout.adds.items())[:1])
    share = -0.5 if has["negative"] else 0.5
    place = {"variant": "reference", "component": "transformer", "stream": "img", "final_share": share}
    sites = [f"transformer_blocks.{block}.img_add{k}" for block in (0, 1) for k in (1, 2)]
    table = pd.DataFrame([place | {"site": site, "block": int(site.split(".")[1])} for site in sites])
    layout = SimpleNamespace(default="transformer", streams=view.layout.streams, adds=adds)
    given = SimpleNamespace(contributions=table, reference="reference", layout=layout, in_branch="")
    check(contributions.draw(given), side_by_side=has["several"], A_negative_share=has["negative"])


@pytest.mark.parametrize("has", combinations("equal", "runs", "variants"))
def test_differences_of_runs(has):
    sizes = [0.0 if has["equal"] else 1e-3, 1e-2]
    names = [f"v{at}" for at in range(9 if has["variants"] else 1)]
    rows = pd.DataFrame([(name, at, size, size == 0) for name in names for at, size in enumerate(sizes)])
    beside = SimpleNamespace(rows=rows.set_axis(["variant", "order", "size", "equal"], axis=1))
    labels = [f"run {at}" for at in range(5 if has["runs"] else 1)]
    found = SimpleNamespace(
        base="base", runs={"base": SimpleNamespace(reference="none")}, beside=dict.fromkeys(labels, beside)
    )
    drawing = across.draw_differences(found)
    check(
        drawing,
        equal_arrays=has["equal"],
        The_first_4_of_5_runs=has["runs"],
        The_first_7_of_9_variants=has["variants"],
        of_bfloat16=True,
    )
