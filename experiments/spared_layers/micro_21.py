"""`python -m experiments.spared_layers.micro_21 SEARCH4 SEARCH8 DIR`: mflux's two sets of 2.1 against searched sets.

SEARCH4, SEARCH8: folders of `search model=micro_21` within the bytes of mflux's spared set in 4 and in 8 bits, with
both of its sets included. Writes DIR/micro_21.json: every recipe by bits, and the found one against those of its size.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.search.numbers import recipes
from precision_lab.record.files import write_json
from precision_lab.record.search import Search


def main(four: Path, eight: Path, out: Path) -> None:
    write_json(out / "micro_21.json", {"4": recipes(Search.open(four)), "8": recipes(Search.open(eight))})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
