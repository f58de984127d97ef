"""`python -m precision_lab`."""

import sys

from precision_lab.cli import main

sys.exit(main())
