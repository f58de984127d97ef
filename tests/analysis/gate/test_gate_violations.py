import math

import pandas as pd
import pytest

from precision_lab.analysis.gate.markdown import table, text_table
from precision_lab.analysis.gate.rows import violations_of
from precision_lab.analysis.gate.violation import RAISED, Violation, by_site, ordered
from tests.fabricated import QWEN_IMAGE


def at(site, step=0, order=0, component="transformer", magnitude=1.0, **other):
    told = {"kind": "ranges", "metric": "log2_amax", "expected": "0 to 1", "got": "2", **other}
    told |= {"shown": site, "early": component == "text_encoder"}
    return Violation(site=site, component=component, port="out", step=step, order=order, magnitude=magnitude, **told)


def test_the_first_step_and_then_execution_order_lead_not_the_largest():
    text = at("norm", step=None, order=3, component="text_encoder")
    pixels = at("decoder", step=None, order=99, component="vae")
    guilty, downstream = at("img_in", order=10), at("proj_out", order=20, magnitude=40)
    later = at("img_in", step=1, order=11)
    timed = Violation(kind="latency", metric="step_seconds", expected="", got="")
    raised = Violation(kind="variants", metric=RAISED, expected="", got="")
    mixed = [timed, pixels, later, downstream, text, guilty, raised]
    assert ordered(mixed) == [raised, text, guilty, downstream, later, pixels, timed]


def test_a_pinned_case_leads_within_its_step():
    pinned = at("proj_out", order=50, pinned=True)
    assert ordered([at("img_in", order=1), pinned, at("x", order=0, step=1, pinned=True)])[0] == pinned


def test_one_line_a_site_with_the_worst_magnitude():
    lines = by_site([at("a", order=1, magnitude=1), at("a", order=4, magnitude=9, metric="log2_rms"), at("b", order=2)])
    assert [line.first.site for line in lines] == ["a", "b"]
    assert lines[0].magnitude == 9
    assert lines[0].first.magnitude == 1
    (both,) = by_site([at("a", variant="x"), at("a", variant="y")])
    assert both.variants == ("x", "y")
    timed = {"kind": "latency", "metric": "step_seconds", "expected": "", "got": ""}
    assert len(by_site([Violation(variant="x", **timed), Violation(variant="y", **timed)])) == 2


def test_tables_name_everything_and_say_what_they_leave_out():
    violations = [at(f"site{i}", order=i, got=f"{i}|{i}", magnitude=math.inf) for i in range(9)]
    text = text_table(violations, shown=4)
    assert text.splitlines()[1].startswith("site0")
    assert text.endswith("and 5 more sites")
    markdown = table(violations, shown=4)
    assert all(line.count("|") - line.count("\\|") == 9 for line in markdown.splitlines() if line.startswith("|"))
    assert "and 5 more sites" in markdown
    assert text_table([]) == table([]) == ""


def test_text_in_markdown_is_literal():
    hostile = "Error: [a](https://x) <b>`*$5|6$*`\n\n# head \x1b[31m"
    line = table([at("site0", got=hostile)]).splitlines()[2]
    assert r"Error: [a]\(https://x) &lt;b>\`\*\$5\|6\$\*\` # head \\x1b[31m" in line
    plain = table([at("transformer_blocks.0.img_mlp", got="[1.5, 2.5] bits")])
    assert "| transformer_blocks.0.img_mlp |" in plain
    assert "| [1.5, 2.5] bits |" in plain


@pytest.mark.parametrize(
    ("component", "port", "address"),
    [("transformer", "out", "a"), ("vae", "out", "vae:a"), ("transformer", "out.1", "a (out.1)")],
)
def test_addresses_are_patterns_that_select_the_site(component, port, address):
    row = {"variant": "v", "component": component, "site": "a", "port": port, "branch": None, "step": 0, "order": 0}
    bad = pd.DataFrame([{**row, "case": "-", "expected": "1", "got": "2", "magnitude": math.inf}])
    (violation,) = violations_of(bad, "sites", "new site", QWEN_IMAGE)
    assert violation.address == address
    record = violation.to_json()
    assert (record["address"], record["magnitude"], record["magnitude_reason"]) == (
        address,
        None,
        "no number says how much",
    )


@pytest.mark.parametrize(("component", "early"), [("text_encoder", True), ("transformer", False), ("vae", False)])
def test_components_before_the_loop_are_those_of_the_layout(component, early):
    row = {"variant": "v", "component": component, "site": "a", "port": "out", "branch": None, "step": None, "order": 0}
    bad = pd.DataFrame([{**row, "case": "-", "expected": "1", "got": "2", "magnitude": 1.0}])
    (violation,) = violations_of(bad, "ranges", "log2_amax", QWEN_IMAGE)
    assert violation.early is early


def test_times_have_no_site():
    timed = Violation(kind="latency", metric="step_seconds", expected="", got="")
    assert timed.address == timed.to_json()["address"] == "step_seconds"
