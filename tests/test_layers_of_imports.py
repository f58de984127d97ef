"""Imports point downward, and heavy packages have one importer each."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import precision_lab

PACKAGE = Path(precision_lab.__file__).parent
# from the top; a package may import those of later groups, and its own
LAYERS = (
    ("cli", "pytest_plugin"),
    ("report",),
    ("analysis",),
    ("lab",),
    ("techniques", "probes"),
    ("synthetic",),
    ("model",),
    ("recipes",),
    ("instrument",),
    ("record",),
    ("numerics", "shapes"),
    ("device",),
    ("settings",),
    ("errors",),
)
RANK = {name: rank for rank, group in enumerate(LAYERS) for name in group}
ONLY = {
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "torch": set(),
    "diffusers": set(),
}
WITHOUT_MLX = {"numerics", "shapes", "record", "recipes", "analysis", "report", "synthetic"}
# a second architecture is a folder under model/ and some yaml: none of these may learn that it exists
KNOW_NO_MODEL = {"record", "recipes", "instrument", "lab", "analysis", "report", "cli", "pytest_plugin"}
PUBLISHED_NAMES = ("transformer_blocks", "text_encoder", "euler_step", "txt_", "img_", "uncond", "guidance_scale")


@cache
def imports(file):
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.append(str(node.module))
    return names


def files():
    return [(file, file.relative_to(PACKAGE).parts[0].removesuffix(".py")) for file in sorted(PACKAGE.rglob("*.py"))]


def test_every_package_has_a_layer():
    assert {layer for _, layer in files()} - {"__init__", "__main__"} <= RANK.keys()


def test_imports_point_downward():
    wrong = []
    for file, layer in files():
        for name in imports(file):
            if name.startswith("precision_lab.") and layer in RANK:
                other = name.split(".")[1]
                if other != layer and RANK[other] <= RANK[layer]:
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_the_laboratory_knows_no_particular_model():
    families = {path.name for path in (PACKAGE / "model").iterdir() if (path / "__init__.py").is_file()}
    assert families
    wrong = []
    for file, layer in files():
        if layer in KNOW_NO_MODEL:
            for name in imports(file):
                parts = name.split(".")
                if parts[:2] == ["precision_lab", "model"] and families & set(parts[2:3]):
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("layer", sorted(KNOW_NO_MODEL - {"pytest_plugin", "record"}))
def test_names_of_a_models_parts_are_in_its_layout_only(layer):
    """In code, not in docstrings: an example may name a module that exists."""
    found = []
    for file in sorted((PACKAGE / layer).rglob("*.py")):
        tree = ast.parse(file.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found += [f"{file.relative_to(PACKAGE)}: {node.value!r}" for w in PUBLISHED_NAMES if w in node.value]
    assert not found


def test_heavy_packages_have_one_importer():
    wrong = []
    for file, layer in files():
        for name in imports(file):
            top = name.split(".")[0]
            if (top in ONLY and layer not in ONLY[top]) or (top == "mlx" and layer in WITHOUT_MLX):
                wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import precision_lab.cli as c; c.main(['--help'])", {"mlx", "hydra", "pandas", "matplotlib", "torch"}),
        ("import precision_lab.analysis.summary", {"mlx", "torch", "matplotlib"}),
        ("import precision_lab.report", {"mlx", "torch"}),
        ("import precision_lab.lab.run", {"torch", "matplotlib", "hydra", "transformers", "skimage"}),
        ("import precision_lab.pytest_plugin", {"mlx", "numpy", "pandas"}),
        ("import precision_lab.shapes", {"mlx", "hydra", "torch", "ml_dtypes"}),
    ],
    ids=["help", "analysis", "report", "lab", "plugin", "shapes"],
)
def test_what_an_import_does_not_load(statement, absent):
    code = f"{statement}; import sys; print(','.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.strip().splitlines()[-1].split(","))
    assert not loaded & absent


def test_the_model_asks_nothing_about_the_harness():
    words = ("technique", "probe", "tap", "hook", "swap")
    for file in (PACKAGE / "model").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.If):
                assert not any(word in ast.unparse(node.test).lower() for word in words), file
