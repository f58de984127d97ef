"""The page of `compare dump=`: its sentences, its rows, strict JSON, and hostile names."""

import json
import math

import pytest

from precision_lab.record.foreign import Comparison, Judged
from precision_lab.report import compared_dump

ABOUT = {"file": "<b>d</b>.safetensors", "model": "small", "prompt": "<script>alert(1)</script>"}


def comparison(*rows, fmt="bfloat16", unknown=()):
    return Comparison(rows, fmt, dict.fromkeys(unknown, ""), 40, 20)


RIGHT = Judged("img_in", ("img_in",), "bfloat16", 0.002, 0.0019, 0.12)
WRONG = Judged("blocks.1.add", ("blocks.1.add",), "float32", math.inf, 1e-7, math.inf)


def test_the_files(tmp_path):
    found = comparison(RIGHT, WRONG, WRONG._replace(operations=("a", "b")), unknown=["<img src=x>\n"])
    page = compared_dump.write(found, ABOUT, tmp_path).read_text()
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (summary["kind"], summary["right"], summary["wrong"], summary["arrays"]) == ("dump", False, 2, 3)
    assert summary["first_wrong"]["operations"] == ["blocks.1.add"]
    assert (summary["first_wrong"]["error"], summary["first_wrong"]["error_reason"]) == (None, "not finite")
    assert summary["rows"][0]["units"] == pytest.approx(0.002 * 2**8)
    assert "accumulated over 2 operations" in page
    assert "<script>alert" not in page
    assert "<b>d</b>" not in page
    assert "<img src=x>" not in page
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".svg"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (RIGHT, "right within bf16 rounding"),
        (
            RIGHT._replace(share=3.0),
            "wrong from img_in on: img_in deviates by 0.002, 0.512 units of bf16 rounding, 3 times",
        ),
        (RIGHT._replace(share=3.0, rounded="bfloat16"), "its values are rounded to bfloat16"),
        (RIGHT._replace(fits="GELU with erf"), "it is nearer to GELU with erf"),
        (RIGHT._replace(share=3.0, operations=()), "wrong from the arrangement of img_in on"),
        (RIGHT._replace(share=3.0, operations=(), address="add (in.1)"), "wrong from the input of add (in.1) on"),
        (RIGHT._replace(share=math.nan, operations=("a", "b")), "wrong from one of a, b on"),
    ],
)
def test_the_verdict(row, said):
    assert said in compared_dump.verdict(comparison(row))


def test_many_rows_are_sampled_and_the_rule_is_stated(tmp_path):
    rows = [RIGHT._replace(address=f"m.{at}", share=at / 2000) for at in range(1500)]
    sections = {section.title: section for section in compared_dump._page(comparison(*rows))}
    every = sections["All arrays"]
    assert len(every.rows) == compared_dump.MOST_ROWS
    assert every.rows[0][0] == "m.500"
    assert "The 1000 of 1500 arrays nearest to the limit" in every.notes[1]
