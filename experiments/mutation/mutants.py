"""All mutants of the model files, in a fixed order, and a stratified sample of them."""

from __future__ import annotations

import ast
import difflib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.mutation.operators import OPERATORS, Edit, Source, callee
from experiments.mutation.precision import PRECISION

_FOLDER = "precision_lab/model"
_SHARED = (
    *("language_body", "layers", "rotary", "attention", "modulation", "timestep", "vae_blocks", "autoencoder"),
    *("text_to_image/scheduler", "text_to_image/sampler", "text_to_image/pipeline"),
)
_OWN = ("rope", "attention", "block", "transformer", "sampler", "pipeline")
_FILES = {
    "micro": (*_SHARED, *(f"qwen_image/{name}" for name in _OWN)),
    "micro_21": tuple(f"qwen_image_21/{name}" for name in (*_OWN, "segments", "prefix", "vae_stages", "vae")),
}
FILES = {model: tuple(f"{_FOLDER}/{name}.py" for name in names) for model, names in _FILES.items()}
"""The files that compute something between token ids and pixels, without reading and checking of files, and labels.

By the embedded model whose gate tests them; the files that both models share are tested by that of `micro`.
"""


@dataclass(frozen=True)
class Mutant:
    """One mistake: an edit at `line` and `column` of `file` (a path below the root)."""

    file: str
    line: int
    column: int
    operator: str
    edit: Edit

    @property
    def name(self) -> str:
        """Unique among the mutants of one version of the code, and readable."""
        length = self.edit.end - self.edit.start
        path = Path(self.file)
        file = f"{path.parent.name}/{path.stem}" if path.parent.name == "text_to_image" else path.stem
        return f"{file}:{self.line}:{self.column}+{length}:{self.operator}:{self.edit.text}"

    def applied(self, text: str) -> str:
        """The text of the file with the mistake."""
        whole = text.encode()
        return (whole[: self.edit.start] + self.edit.text.encode() + whole[self.edit.end :]).decode()

    def diff(self, text: str) -> str:
        """The lines that change, as `- before` and `+ after`."""
        lines = difflib.ndiff(text.splitlines(), self.applied(text).splitlines())
        return "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines if line[0] in "+-")


def mutants(file: str, text: str) -> list[Mutant]:
    """Every mutant of a file, by position and operator, without duplicates and without mutants that change nothing."""
    source, tree = Source(text), ast.parse(text)
    found: list[Mutant] = []
    seen = {ast.dump(tree)}
    for node in _numeric(tree):
        for name, operator in (OPERATORS | PRECISION).items():
            for edit in operator(source, node):
                line = source.bytes.count(b"\n", 0, edit.start) + 1
                column = edit.start - (source.bytes.rfind(b"\n", 0, edit.start) + 1)
                mutant = Mutant(file, line, column, name, edit)
                try:
                    dump = ast.dump(ast.parse(mutant.applied(text)))
                except SyntaxError:
                    continue
                if dump not in seen:
                    seen.add(dump)
                    found.append(mutant)
    return sorted(found, key=lambda m: (m.line, m.column, m.operator, m.edit.text))


def all_mutants(root: Path, model: str = "micro") -> list[Mutant]:
    """Every mutant of the files below `root` that the gate of `model` tests."""
    return [mutant for file in FILES[model] for mutant in mutants(file, (root / file).read_text(encoding="utf-8"))]


def sample(population: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` mutants, taken in turn from each pair of file and operator, in an order determined by the seed."""
    rng = random.Random(seed)
    strata: dict[tuple[str, str], list[Mutant]] = defaultdict(list)
    for mutant in population:
        strata[mutant.file, mutant.operator].append(mutant)
    for stratum in strata.values():
        rng.shuffle(stratum)
    chosen: list[Mutant] = []
    while len(chosen) < min(count, len(population)):
        turn = [stratum.pop() for stratum in strata.values() if stratum]
        rng.shuffle(turn)
        chosen += turn
    return chosen[:count]


def _numeric(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` that may take part in computing."""
    for name, value in ast.iter_fields(node):
        if name in _NOT_COMPUTED or (isinstance(node, ast.Call) and callee(node) in _LAYOUT and name != "func"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _is_no_arithmetic(child):
                continue
            if isinstance(node, ast.FunctionDef) and node.name == "__init__" and not _computes(child):
                yield from (norm for norm in ast.walk(child) if isinstance(norm, ast.Call) and callee(norm) in _NORMS)
                continue
            yield child
            yield from _numeric(child)


_NORMS = ("LayerNorm", "RMSNorm")
"""Layers whose construction decides a number, their eps."""
_NOT_COMPUTED = ("annotation", "returns", "decorator_list", "bases")
_LAYOUT = ("flatten", "reshape", "tile", "transpose", "zip")
"""Calls whose arguments are sizes and axes: a mistake in them raises."""
_STRUCTURE = ("_down_blocks", "_up_blocks", "sanitize")
"""Functions that determine which layers and weights exist: a strict loader rejects a mistake in them."""


def _is_no_arithmetic(node: ast.AST) -> bool:
    """Whether a node is a message, a rejection of input with its condition, an import, or structure."""
    match node:
        case ast.Raise() | ast.Assert() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.FunctionDef(name=name):
            return name in _STRUCTURE
        case ast.If(body=[ast.Raise()]):
            return True
        case ast.For():
            return any(isinstance(child, ast.Raise) for child in ast.walk(node))
    return False


def _computes(node: ast.AST) -> bool:
    """Whether a part of a constructor computes a table or sets a default; other parts create layers of some size."""
    if isinstance(node, ast.arguments):
        return True
    names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    return bool(names & {"np", "mx"}) and not _is_overwritten(node)


def _is_overwritten(node: ast.AST) -> bool:
    """Whether a node is the initial value of a weight, which the loader replaces."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("self.weight", "self.gamma")
