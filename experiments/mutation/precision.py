"""Mutation operators on precision: roundings that move, constants in 16 bits, another eps, a mask that is dropped."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from experiments.mutation.operators import Edit, Operator, Source

_SMALL = 1e-4


def evaluated_in_fp32(source: Source, node: ast.AST) -> Iterator[Edit]:
    """An arithmetic result of a module that rounds at each step is computed in fp32 and rounded once."""
    if not isinstance(node, ast.FunctionDef) or node.name != "__call__":
        return
    names = [argument.arg for argument in node.args.args if argument.arg != "self"]
    for statement in ast.walk(node):
        if isinstance(statement, ast.Return) and isinstance(statement.value, ast.BinOp) and names:
            text = ast.unparse(_Wide(names).visit(copy.deepcopy(statement.value)))
            yield source.replace(statement.value, f"({text}).astype({names[0]}.dtype)")


class _Wide(ast.NodeTransformer):
    """Casts the arguments in an expression to fp32."""

    def __init__(self, names: list[str]):
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.parse(f"{node.id}.astype(mx.float32)", mode="eval").body if node.id in self.names else node


def rounded_intermediate(source: Source, node: ast.AST) -> Iterator[Edit]:
    """A part of a longer expression in fp32 is rounded to the dtype of the module's input."""
    if not isinstance(node, ast.FunctionDef) or node.name != "__call__" or "float32" not in ast.unparse(node):
        return
    names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "rotation", "mask")]
    for outer in ast.walk(node):
        if isinstance(outer, ast.BinOp) and names:
            for part in (outer.left, outer.right):
                inner = part.operand if isinstance(part, ast.UnaryOp) else part
                if isinstance(inner, ast.BinOp | ast.Call) and "shape" not in source.text(outer):
                    yield source.replace(part, f"({source.text(part)}).astype({names[0]}.dtype)")


def constant_in_16_bits(source: Source, node: ast.AST) -> Iterator[Edit]:
    """A fraction is rounded to bfloat16."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant) and type(child.value) is float and abs(child.value) >= _SMALL:
            rounded = float(np.float32(child.value).astype(ml_dtypes.bfloat16))
            if rounded != child.value:
                yield source.replace(child, repr(rounded))


def another_eps(source: Source, node: ast.AST) -> Iterator[Edit]:
    """A tolerance below 1e-4 is ten times as large."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant) and type(child.value) is float and 0 < abs(child.value) < _SMALL:
            yield source.replace(child, f"{10 * child.value:.6g}")


def another_eps_of_one_norm(source: Source, node: ast.AST) -> Iterator[Edit]:
    """One norm is built with an eps of 1e-5."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("LayerNorm", "RMSNorm"):
        arguments = [source.text(argument) for argument in node.args[: 1 if node.func.id == "RMSNorm" else 0]]
        yield source.replace(node, f"{node.func.id}({', '.join([*arguments, 'eps=1e-5'])})")


def dropped_mask(source: Source, node: ast.AST) -> Iterator[Edit]:
    """A mask that is passed on becomes None."""
    if isinstance(node, ast.Call):
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            name = argument.attr if isinstance(argument, ast.Attribute) else getattr(argument, "id", "")
            if name in ("mask", "attention_mask", "text_mask", "padded"):
                yield source.replace(argument, "None")


PRECISION: dict[str, Operator] = {
    operator.__name__: operator
    for operator in (
        evaluated_in_fp32,
        rounded_intermediate,
        constant_in_16_bits,
        another_eps,
        another_eps_of_one_norm,
        dropped_mask,
    )
}
