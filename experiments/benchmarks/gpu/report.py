"""Tables and figures of a benchmark.json; needs neither MLX nor torch.

python -m experiments.benchmarks.gpu.report DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.benchmarks.gpu import figures, roofline
from experiments.benchmarks.gpu.store import read
from experiments.benchmarks.gpu.tables import markdown
from precision_lab.report.figures import style


def main(folder: Path) -> None:
    """Writes tables.md and the figures; tables.md first, since it needs no drawing."""
    record = read(folder)
    (folder / "tables.md").write_text(markdown(record), encoding="utf-8")
    with style.theme():
        for draw in (figures.forward, roofline.draw, figures.block, figures.laws, figures.probes):
            drawing = draw(record)
            if drawing is not None:
                style.save(drawing, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
