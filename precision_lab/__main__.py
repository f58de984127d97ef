"""`python -m precision_lab`."""

import os
import signal
import sys

from precision_lab.cli import main

signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: finished parts are kept
try:
    code = main()
    sys.stdout.flush()
except BrokenPipeError:  # the reader of a pipe left
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 1
sys.exit(code)
