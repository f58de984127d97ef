"""Two runs of the atlas side by side: their figure, and the numbers of the page.

    python -m precision_lab +exp=atlas out=LEFT
    python -m precision_lab +exp=atlas model=micro_21 out=RIGHT
    python -m experiments.atlas.side_by_side LEFT RIGHT --to DIR

Reads the tables of both runs and writes DIR/side_by_side.png and .svg, and DIR/numbers.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.atlas.figure import draw
from experiments.atlas.survey import Survey
from precision_lab.errors import InputError
from precision_lab.record.run import Run
from precision_lab.report.figures import style


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for a folder that holds no complete run of the atlas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN")
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        surveys = [Survey.of(Run.open(path)) for path in options.runs]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    options.to.mkdir(parents=True, exist_ok=True)
    numbers = {survey.name: survey.numbers() for survey in surveys}
    (options.to / "numbers.json").write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    with style.theme():
        style.save(draw(surveys), options.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
