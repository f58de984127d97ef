"""Measures how far from a rounding boundary this machine's 16-bit results may be wrong, in ulps of fp32.

    python -m experiments.rounding [--draws 300] [--to FILE]

Prints the least k of each operation of the model, and the part of tests/model/rounding.json for this back end: twice
that k, at least 2. `--to` writes that table with this part replaced. Exits with 1, and writes nothing, if no k is
enough for an operation.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from precision_lab.device import blas

blas.preload()  # before MLX is imported

from precision_lab.device.environment import backend, device_name, set_numeric_switches  # noqa: E402
from tests.model.rounded_operations import OPERATIONS  # noqa: E402
from tests.model.rounding import TABLE, least_ulps  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300, help="draws of each format; those of fewer are among them")
    parser.add_argument("--to", type=Path, metavar="FILE", help="the whole table; may be tests/model/rounding.json")
    options = parser.parse_args()
    draws = options.draws
    set_numeric_switches()
    print(device_name())
    found, code = {}, 0
    for operation in OPERATIONS:
        try:
            least = least_ulps(operation, draws)
        except RuntimeError as error:
            print(f"no k is enough: {error}", flush=True)
            code = 1
            continue
        print(f"{operation.name}: least k {least} in {draws} draws of each format", flush=True)
        if operation.steps:
            found[operation.name] = max(2, 2 * least)
    print(json.dumps({backend(): found}, indent=1))
    if options.to and not code:
        options.to.write_text(json.dumps(json.loads(TABLE.read_text()) | {backend(): found}, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
