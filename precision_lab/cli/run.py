"""`run`: an experiment from configuration to report."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from precision_lab.cli.config import build_spec, spec_of
from precision_lab.device.environment import set_numeric_switches


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Measures, judges and draws; prints a table of variants and the path of the report."""
    set_numeric_switches()
    spec = build_spec(config, command)
    # after the mistakes that a configuration shows: these imports take longer than to find them
    from precision_lab.cli.progress import showing
    from precision_lab.cli.report import judge_and_draw
    from precision_lab.cli.terminal import open_console
    from precision_lab.lab.run import run
    from precision_lab.record.run import Run

    console = open_console()
    with showing(console) as progress:
        run(spec, progress, spec_of)
    return judge_and_draw(Run.open(spec.out), console)
