"""No code block of a page escapes: its language, what is said about it, and the options that its commands name."""

import ast
import re
import shlex
from collections import Counter

import pytest
import yaml

from precision_lab.cli import COMMANDS
from precision_lab.cli.paths import options
from tests.page_blocks import PAGES, ROOT, RUN, SHOWN, Block, blocks, indented
from tests.page_standins import StandIns

BLOCKS = [block for page in PAGES for block in blocks(page)]
GROUPS = {"exp", "technique", "candidate", "model", "probe", "sampler", "claim"}
# the two commands that CI takes from the README, see `.ci/run`
OF_CI = "python3 -m venv .venv && "


def test_every_page_of_the_guide_is_read():
    assert {page.name for page in (ROOT / "experiments" / "guide").iterdir() if page.suffix == ".md"} <= {
        page.name for page in PAGES
    }
    assert Counter(block.language for block in BLOCKS)["sh"] >= 40


def test_no_code_is_hidden_from_the_tests():
    """Neither in an indented block nor under a language that no test runs."""
    hidden = [f"{page.name}: {line}" for page in PAGES for line in indented(page) if OF_CI not in line]
    hidden += [
        block.where
        for block in BLOCKS
        if block.language not in (*RUN, *SHOWN) or (block.language in SHOWN and "python -m precision_lab" in block.text)
    ]
    fences = [page.name for page in PAGES if len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) % 2]
    assert (hidden, fences) == ([], [])


def test_what_a_page_says_about_a_block_is_true():
    wrong = []
    for block in BLOCKS:
        if block.kind == "not run":
            wrong += [block.where] if len(block.value) < 12 else []
        elif block.kind == "tested":
            file, _, name = block.value.partition("::")
            source = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
            page = block.page.rpartition("/")[2]
            if f"def {name}(" not in source or page not in source:
                wrong.append(f"{block.where}: {block.value} does not read {page}")
        elif block.kind == "with":
            made = [word for word in block.value.split() if word.partition("=")[2] in StandIns.kinds()]
            wrong += [
                f"{block.where}: no {name} below"
                for name in (word.partition("=")[0] for word in made)
                if name not in block.text
            ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_parses_and_commands_name_what_exists(page):
    here = blocks(page)
    own = {
        (parts[-2], parts[-1].partition(".")[0])
        for block in here
        if block.file and (parts := block.file.split("/"))[1:]
    }
    wrong: list[str] = []
    for block in here:
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text) is not None
        elif block.language == "sh":
            for line in block.lines:
                shlex.split(line, comments=True)
            wrong += [f"{block.where}: {word}" for command in block.commands for word in unknown(command, own)]
    assert wrong == []


def unknown(command: list[str], own: set[tuple[str, str]]) -> list[str]:
    """The words that name no command, or no option of a group: neither a shipped one nor a file of the page."""
    first = next((word for word in command if "=" not in word and word[0] not in "-+~"), "run")
    first = first if command and command[0] == first else "run"
    wrong = [] if first in COMMANDS else [first]
    if "--config-dir" in command or first == "recipe":  # some come from a search or from another program
        return wrong
    for word in command:
        key, _, value = word.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if group in GROUPS and "." not in key and first not in ("compare", "report"):
            names = re.findall(r"\w+", value)
            wrong += [f"{key}={name}" for name in names if name not in options(group) and (group, name) not in own]
    return wrong


def test_mistakes_in_a_page_are_noticed():
    assert unknown(["+exp=findigs"], set()) == ["exp=findigs"]
    assert unknown(["technique=[affine4,afine8]"], set()) == ["technique=afine8"]
    assert unknown(["survive", "rms=0.1"], set()) == ["survive"]
    assert unknown(["technique=[clip]"], {("technique", "clip")}) == []


def test_a_block_knows_its_commands_and_its_file():
    text = "python -m precision_lab gate \\\n  out=a # judges\n# a comment\necho b\n"
    block = Block("p", 1, "sh", text, "", "")
    assert block.commands == [["gate", "out=a"]]
    assert len(block.lines) == 2
    assert Block("p", 1, "yaml", "# @package _global_\n# conf/exp/a.yaml\nb: 1\n", "", "").file == "conf/exp/a.yaml"
    assert Block("p", 1, "python", "# a word\n", "", "").file is None


def test_the_glossary_of_the_guide_has_the_terms_of_the_report():
    template = (ROOT / "precision_lab" / "report" / "templates" / "glossary.html").read_text()
    page = (ROOT / "experiments" / "guide" / "glossary.md").read_text().replace("\\|", "|")
    terms = re.findall(r'\((?:true|layout[\w.]*), "([^"]+)", "([^"]+)"', template)
    assert len(terms) >= 14
    assert [term for term, meaning in terms if f"| {term} | {meaning.rstrip('.')}" not in page] == []
