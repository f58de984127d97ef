"""`python -m precision_lab.cli.process RUN PROCESS`: the child that `run` starts for variants of another process.

RUN is the folder of a run that is going on, PROCESS its `process` as JSON. Not a command for people: it talks to `run`
through its standard input and output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from precision_lab.device import allocator, blas

COMMAND = (sys.executable, "-m", "precision_lab.cli.process")


def main(argv: Sequence[str]) -> int:
    """Serves the run until it asks for nothing more."""
    out, settings = Path(argv[0]), json.loads(argv[1])
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not end up among the replies
    allocator.keep_freed()
    blas.preload()
    from omegaconf import DictConfig, OmegaConf

    from precision_lab.cli.config import build_spec
    from precision_lab.device.environment import set_numeric_switches
    from precision_lab.errors import InputError
    from precision_lab.lab.process import serve
    from precision_lab.lab.spec import ProcessSpec

    process = ProcessSpec(**settings)
    set_numeric_switches(process.tf32)
    config = OmegaConf.load(out / "config.yaml")
    assert isinstance(config, DictConfig)
    config.out, config.resume = str(out), True
    try:
        spec = build_spec(config, ())
        serve(spec, process, sys.stdin, replies)
    except InputError as error:
        replies.write(json.dumps({"input_error": str(error)}) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: finished parts are kept
    try:
        sys.exit(main(sys.argv[1:]))
    except (KeyboardInterrupt, BrokenPipeError):  # the run ended, and this with it
        os._exit(130)
