"""Scripts and data of a page: what names and texts of a run cannot do, and that the page allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import pytest

from precision_lab import report
from precision_lab.report import embedding
from precision_lab.report.rendering import render

FOLDER = Path(report.__file__).parent
HOSTILE = "</script><script>alert(1)</script><!--<b>&\u2028'\""


def test_data_come_back_as_they_are_and_close_no_element():
    value = {HOSTILE: [HOSTILE, 1.5, None, True, "雪山"]}
    text = str(embedding.data({"values": value}))
    found = re.fullmatch(r'<script type="application/json" id="values">(.*)</script>', text, re.DOTALL)
    assert json.loads(found[1]) == value
    assert not re.search("[<>&\u2028]", found[1])
    assert 'id="&lt;' in str(embedding.data({"<": 1}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_no_data(value):
    with pytest.raises(ValueError, match="JSON"):
        embedding.data({"values": [value]})


@pytest.mark.parametrize("file", sorted(FOLDER.glob("assets/*.js")) + sorted(FOLDER.glob("vendor/*.min.js")))
def test_no_script_ends_its_element_or_makes_code_of_text(file):
    text = embedding.source(file.name)
    assert not re.search("</script|<!--", text, re.IGNORECASE)
    assert not re.search(r"\beval\(|new Function\(", text)
    if file.parent.name == "assets":
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write", text)


def test_an_unknown_script_is_an_error():
    with pytest.raises(FileNotFoundError, match=r"nothing\.js"):
        embedding.scripts(["nothing.js"])


def test_the_policy_names_each_script_of_a_page_by_its_digest():
    moment = {"time": "", "commit": ""}
    content = {"name": "x", "runs": 0, "sites": 0, "first": moment, "last": moment}
    page = render("history.html", scripts=("echarts.min.js",), data={"d": HOSTILE}, **content)
    allowed = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', page)[1])
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == len(embedding.FIRST) + len(embedding.ALWAYS) + 1
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in allowed
    assert "default-src 'none'" in allowed
    assert "unsafe-inline" not in allowed.replace("style-src 'unsafe-inline'", "")


def test_vendored_files_are_those_that_are_stated_with_their_licences():
    stated = (FOLDER / "vendor" / "VENDORED.md").read_text(encoding="utf-8")
    names = {path.name for path in (FOLDER / "vendor").iterdir()} - {"VENDORED.md"}
    assert names == set(re.findall(r"`([\w.]+\.(?:js|txt))`", stated))
    for file in (FOLDER / "vendor").glob("*.min.js"):
        row = next(line for line in stated.splitlines() if line.startswith(f"| `{file.name}`"))
        assert hashlib.sha256(file.read_bytes()).hexdigest() in row
        assert "LICENSE" in row
