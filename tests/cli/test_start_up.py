"""What a mistake costs: a configuration that cannot be composed imports neither MLX nor the tables."""

import subprocess
import sys

import pytest

from tests.spread import thinned

HEAVY = ("mlx", "numpy", "pandas", "scipy", "matplotlib", "transformers", "torch")
TABLES = ("pandas", "scipy", "matplotlib", "transformers", "torch")
CODE = """
import sys
from precision_lab.cli import main
code = main(sys.argv[2:])
loaded = set(sys.argv[1].split(",")) & sys.modules.keys()
assert not loaded, loaded
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("override", "unwanted", "said"),
    thinned(
        [
            ("setting=1", HEAVY, "Unknown setting 'setting'"),
            ("+exp=baselin", HEAVY, "Unknown experiment 'baselin'. Did you mean baseline"),
            ("technique=[ffn_scalin]", HEAVY, "Unknown technique 'ffn_scalin'. Did you mean ffn_scaling"),
            ("only=[baselin]", TABLES, "only: unknown variant 'baselin'. Did you mean baseline"),
            ("seeds=[a]", TABLES, "seeds"),
        ],
        keep=2,
    ),
)
def test_a_mistake_is_found_before_large_imports(override, unwanted, said, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, ",".join(unwanted), override], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
