"""The code blocks of README.md and of the guide, and what the pages say about running them.

`tests/test_page_commands.py` runs every block of a page, in order and in one folder, as a reader would. A block of
Python or yaml whose first line is a comment with a path (`# conf/technique/clip.yaml`) is saved there. A comment above
a block changes that, and says why. It is visible in the page's source:

`<!-- not run: it needs the published weights -->`: no run; its commands must compose all the same.
`<!-- tested: tests/test_guide.py::test_the_commands_for_two_macs -->`: another test runs the block.
`<!-- with: DIR=run A=run sampler.steps=2 -->`: before it runs, DIR and A are made, each of a kind that
`tests/page_standins.py` has; whatever is no kind is an override for its commands.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "experiments" / "guide").glob("*.md")))
RUN = ("sh", "python", "yaml")
SHOWN = ("text",)
LAB = ["python", "-m", "precision_lab"]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_NOTE = re.compile(r"<!-- (?P<kind>not run|tested|with): (?P<value>[^>]+?)\s*-->\n\Z")
_FILE = re.compile(r"(?:# @package _global_\n)?# (?P<file>[\w./-]+\.(?:py|ya?ml))\b")


@dataclass(frozen=True)
class Block:
    """A code block. kind, value: of the comment above it, or empty. file: the path that its first line names."""

    page: str
    line: int
    language: str
    text: str
    kind: str
    value: str

    @property
    def file(self) -> str | None:
        found = _FILE.match(self.text)
        return found["file"] if found and self.language != "sh" else None

    @property
    def lines(self) -> list[str]:
        """The command lines, without those that are a comment; continued ones are joined."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in joined if line.strip() and not line.lstrip().startswith("#")]

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of each command line of this program, up to what the shell reads."""
        found = []
        for line in self.lines:
            words = shlex.split(line, comments=True)
            words = words[: next((i for i, word in enumerate(words) if word in (">", "|", "&&")), None)]
            if words[:3] == LAB:
                found.append(words[3:])
        return found if self.language == "sh" else []

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return list(_blocks(text, str(page.relative_to(ROOT))))


def _blocks(text: str, page: str) -> Iterator[Block]:
    for fence in _FENCE.finditer(text):
        note = _NOTE.search(text, 0, fence.start())
        line = text.count("\n", 0, fence.start()) + 1
        kind, value = (note["kind"], note["value"]) if note else ("", "")
        yield Block(page, line, fence["language"], dedent(fence["text"]), kind, " ".join(value.split()))


def indented(page: Path) -> list[str]:
    """Indented code, which no test would find: lines of it that are no part of a list."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"^(?: *\n)+    (\S.*)$", text, flags=re.MULTILINE)
