"""Pages state what the committed results say; their links, figures and index are complete."""

import json
import re
from pathlib import Path

import pytest
import yaml

import precision_lab
from tests.spread import thinned
from tests.stated_numbers import ROOT, VERDICTS, Statement, agrees, check, claims_listed, statements

PAGES = sorted(
    page
    for pattern in (
        "*.md",
        ".github/**/*.md",
        "experiments/**/*.md",
        "results/reference/**/*.md",
        "precision_lab/**/*.md",
    )
    for page in ROOT.glob(pattern)
)
STATED = [(page, statement) for page in PAGES for statement in statements(page.read_text())]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[str]:
    found = LINK.findall(FENCE.sub("", page.read_text()))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize(("page", "statement"), STATED, ids=[f"{name(p)}@{s.start}" for p, s in STATED])
def test_a_page_states_the_numbers_of_its_source(page, statement):
    problems, compared = check(statement)
    assert not problems
    assert compared


@pytest.mark.parametrize(
    ("page", "statement"), thinned(STATED, keep=24), ids=[f"{name(p)}@{s.start}" for p, s in STATED]
)
def test_one_changed_digit_or_verdict_is_noticed(page, statement):
    block = statement.block
    for first, last in check(statement)[1]:
        shown = block[first:last]
        if shown in VERDICTS:
            other = VERDICTS[(VERDICTS.index(shown) + 1) % 3]
        elif re.fullmatch(r"[-\d,.e]+", shown):
            at = max(i for i, c in enumerate(shown.partition("e")[0]) if c.isdigit())
            other = f"{shown[:at]}{(int(shown[at]) + 5) % 10}{shown[at + 1 :]}"
        else:
            other = f"{shown[:-1]}?"
        changed = Statement(
            statement.kind, statement.files, statement.body, statement.start, block[:first] + other + block[last:]
        )
        assert check(changed)[0], f"{other} in place of {shown} at {first}"


@pytest.mark.parametrize(
    ("shown", "value", "expected"),
    [
        ("0.225", 0.22511, True),
        ("0.226", 0.22511, False),
        ("1.00", 1.0011, True),
        ("1", 1.0011, False),
        ("0.1", 0.103, False),
        ("18,105,003", 18105003, True),
        ("18,105,004", 18105003, False),
        ("6.08e7", 60817408.0, True),
        ("0", 0.0, True),
        ("642", 642.07, True),
    ],
)
def test_a_shown_number_agrees_within_half_a_unit_of_its_last_digit(shown, value, expected):
    assert agrees(shown, value) == expected


def test_a_page_that_links_a_summary_states_numbers_of_it():
    wrong = []
    for page in PAGES:
        sources = {file for statement in statements(page.read_text()) for file in statement.files}
        for target in links(page):
            file = (page.parent / target).resolve()
            if file.name == "summary.json" and file not in sources:
                wrong.append(f"{name(page)} links {name(file)}")
    assert not wrong


def test_every_verdict_in_bold_rests_on_a_summary():
    wrong = []
    for page in PAGES:
        text = page.read_text()
        compared = {
            s.start + first for s in statements(text) for first, last in check(s)[1] if s.block[first:last] in VERDICTS
        }
        for match in re.finditer(rf"\*\*({'|'.join(VERDICTS)})\*\*", text):
            if match.start(1) not in compared:
                line = text.count("\n", 0, match.start()) + 1
                wrong.append(f"{name(page)}:{line}: {match[1]}")
    assert not wrong


def test_a_page_with_tables_of_claims_lists_every_claim_of_its_run_once():
    listed: dict[Path, list[str]] = {}
    for _, statement in STATED:
        if statement.kind == "claims":
            (file,) = statement.files
            listed.setdefault(file, []).extend(claims_listed(statement))
    assert len(listed) >= 2
    for file, claims in listed.items():
        assert sorted(claims) == sorted(claim["id"] for claim in json.loads(file.read_text())["claims"]), name(file)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    wrong = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            wrong.append(target)
    assert not wrong


def test_every_committed_figure_is_on_a_page():
    linked = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    figures = [
        f
        for top in ("experiments", "results/reference")
        for f in (ROOT / top).rglob("*")
        if f.suffix in (".png", ".svg")
    ]
    assert [name(figure) for figure in sorted(figures) if figure not in linked] == []


def test_the_index_lists_every_page_of_the_guide_and_of_the_notebook():
    index = ROOT / "experiments" / "guide" / "README.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for target in links(index)}
    pages = {*index.parent.glob("*.md"), *(ROOT / "experiments").glob("*/README.md")} - {index}
    assert sorted(map(name, pages - listed)) == []
    assert index.resolve() in {(ROOT / target).resolve() for target in links(ROOT / "README.md")}


@pytest.mark.parametrize("heading", ["Run an experiment:", "Run the tests:"])
def test_the_readme_has_the_commands_that_ci_runs(heading):
    lines = (ROOT / "README.md").read_text().splitlines()
    after = [line for line in lines[lines.index(heading) + 1 :] if line][:2]
    assert after[0].startswith("    python3 -m venv .venv && ")
    assert not after[1].startswith(" ")


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == precision_lab.__version__
    assert citation["cff-version"] == "1.2.0"


def test_the_release_workflow_finds_the_version_of_the_package():
    pattern = r'^__version__ = "(.*)"$'
    found = re.findall(pattern, Path(precision_lab.__file__).read_text(), flags=re.MULTILINE)
    assert found == [precision_lab.__version__]
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert pattern.replace("(.*)", r"\(.*\)") in workflow


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=name)
def test_a_workflow_is_valid_yaml_with_limited_permissions(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
