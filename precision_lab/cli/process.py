"""`python -m precision_lab.cli.process RUN PROCESS`: the child that `run` starts for variants of another process.

RUN is the folder of the current run, and PROCESS the variants' `process` as JSON. It is not a command for users: it
communicates with `run` through its standard input and output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from precision_lab.device import startup
from precision_lab.lab.requests import Requests

COMMAND = (sys.executable, "-m", "precision_lab.cli.process")


def main(argv: Sequence[str]) -> int:
    """Serves the run until it sends no more requests, or has ended."""
    requests = Requests(sys.stdin.fileno())
    out, settings = Path(argv[0]), json.loads(argv[1])
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # printed text must not mix with the replies
    startup.prepare()
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
        serve(spec, process, requests, replies)
    except InputError as error:
        replies.write(json.dumps({"input_error": str(error)}) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: completed parts remain
    try:
        sys.exit(main(sys.argv[1:]))
    except (KeyboardInterrupt, BrokenPipeError):  # the run has ended
        os._exit(130)
