"""Mutation operators: small numerical mistakes, each as an edit of the source text.

An operator examines one node of the syntax tree and yields the possible edits. They are typical mistakes of a port or a
refactoring: another sign, term, constant, axis, order of arguments or function, a position off by one, or a missing
cast or rounding.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple


class Edit(NamedTuple):
    """The text that replaces the bytes `start` to `end` of a file."""

    start: int
    end: int
    text: str


class Source:
    """The text of a file and the position of each node in bytes, as in the syntax tree."""

    def __init__(self, text: str):
        self.bytes = text.encode()
        self._lines = [0]
        for line in self.bytes.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, end = self._lines[node.lineno - 1], self._lines[node.end_lineno - 1]
        return start + node.col_offset, end + node.end_col_offset

    def text(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def replace(self, node: ast.expr, text: str) -> Edit:
        return Edit(*self.span(node), text)

    def swap(self, first: ast.expr, second: ast.expr) -> Edit:
        """Exchanges both expressions; the text between them is unchanged."""
        (start, first_end), (second_start, end) = self.span(first), self.span(second)
        between = self.bytes[first_end:second_start].decode()
        return Edit(start, end, self.text(second) + between + self.text(first))


Operator = Callable[[Source, ast.AST], Iterator[Edit]]

_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
}
_FUNCTIONS = {
    "cos": "sin",
    "sin": "cos",
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "sum": "mean",
    "mean": "sum",
    "sqrt": "square",
    "tanh": "sigmoid",
    "silu": "gelu",
    "exp": "expm1",
    "ones": "zeros",
    "ones_like": "zeros_like",
    "zeros_like": "ones_like",
    "floor": "ceil",
    "outer": "add.outer",
}
_NARROWER = {"mx.float32": "mx.bfloat16", "np.float32": "np.float16", "np.float64": "np.float16"}
_COMMUTATIVE = {"add", "attn_add", "mlp_add", "multiply", "maximum", "minimum"}
_TOLERANCE = 1e-4


def arithmetic(source: Source, node: ast.AST) -> Iterator[Edit]:
    """`a + b` becomes `a - b`, and so on."""
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        old, new = _ARITHMETIC[type(node.op)]
        yield _between(source, node.left, node.right, old, new)


def dropped_term(source: Source, node: ast.AST) -> Iterator[Edit]:
    """`a + b` becomes `a`, or `b`; a quotient becomes its numerator."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        yield source.replace(node, _operand(source, node.left))
        if not isinstance(node.op, ast.Div):
            yield source.replace(node, _operand(source, node.right))


def constant(source: Source, node: ast.AST) -> Iterator[Edit]:
    """An integer increases by one, a fraction by a tenth, and a tolerance (below 1e-4) by a factor of ten thousand."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Constant):
            continue
        if type(child.value) is int:
            yield source.replace(child, str(child.value + 1))
        elif type(child.value) is float:
            factor = 1e4 if abs(child.value) < _TOLERANCE else 1.1
            yield source.replace(child, f"{child.value * factor:.6g}")


def sign(source: Source, node: ast.AST) -> Iterator[Edit]:
    """Removes a minus; `constant` and `axis` change an index that counts from the end."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and source.text(node) != "-1":
        yield source.replace(node, source.text(node.operand))


def dropped_cast(source: Source, node: ast.AST) -> Iterator[Edit]:
    """`x.astype(t)` becomes `x`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "astype":
        yield source.replace(node, _operand(source, node.func.value))


def narrower_format(source: Source, node: ast.AST) -> Iterator[Edit]:
    """fp32 becomes bf16 (MLX) or fp16 (NumPy), float64 fp16."""
    if isinstance(node, ast.Attribute) and source.text(node) in _NARROWER:
        yield source.replace(node, _NARROWER[source.text(node)])


def other_function(source: Source, node: ast.AST) -> Iterator[Edit]:
    """cos for sin, mean for sum, RMSNorm for LayerNorm."""
    if not isinstance(node, ast.Call):
        return
    match node.func:
        case ast.Attribute(attr="layer_norm"):
            x, weight, _, eps = map(source.text, node.args)
            yield source.replace(node, f"mx.fast.rms_norm({x}, {weight}, {eps})")
        case ast.Attribute(attr="rms_norm"):
            x, weight, eps = map(source.text, node.args)
            yield source.replace(node, f"mx.fast.layer_norm({x}, {weight}, None, {eps})")
        case ast.Attribute(value=ast.Name(id="mx" | "np" | "nn" | "math" as module), attr=name) if name in _FUNCTIONS:
            yield source.replace(node.func, f"{module}.{_FUNCTIONS[name]}")
        case ast.Name(id=name) if name in _FUNCTIONS:
            yield source.replace(node.func, _FUNCTIONS[name])


def comparison(source: Source, node: ast.AST) -> Iterator[Edit]:
    """`<` becomes `<=`, `is` becomes `is not`, `not x` becomes `x`, `and` becomes `or`."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        old, new = _COMPARISONS[type(node.ops[0])]
        yield _between(source, node.left, node.comparators[0], old, new)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield source.replace(node, _operand(source, node.operand))
    elif isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        yield _between(source, node.values[0], node.values[1], old, new)


def axis(source: Source, node: ast.AST) -> Iterator[Edit]:
    """An axis becomes the previous one; the last two axes of a transposition change places."""
    if isinstance(node, ast.keyword) and node.arg == "axis":
        yield source.replace(node.value, {"-1": "-2", "0": "1"}.get(source.text(node.value), "0"))
    elif isinstance(node, ast.Call) and callee(node) == "transpose" and len(node.args) > 1:
        yield source.swap(node.args[-2], node.args[-1])


def order(source: Source, node: ast.AST) -> Iterator[Edit]:
    """Neighbours in a call, a list or an unpacking change places."""
    items: list[ast.expr] = []
    if isinstance(node, ast.Call) and callee(node) not in _COMMUTATIVE:
        items = node.args
        values = [keyword.value for keyword in node.keywords if keyword.arg in ("img", "txt")]
        if len(values) == 2:
            yield source.swap(*values)
    elif isinstance(node, ast.List) or (isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Store)):
        items = node.elts
    for first, second in pairwise(items):
        if all(isinstance(item, ast.Name | ast.Attribute | ast.Subscript) for item in (first, second)):
            yield source.swap(first, second)


def dropped_call(source: Source, node: ast.AST) -> Iterator[Edit]:
    """A call of a module, a clip, a padding or a private step becomes its first argument."""
    if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
        owner = source.text(node.func.value)
        if owner in ("self", "self.sampler") or callee(node) in ("clip", "pad", "maximum", "broadcast_to"):
            yield source.replace(node, _operand(source, node.args[0]))


def off_by_one(source: Source, node: ast.AST) -> Iterator[Edit]:
    """Positions and ranges start one later, and so do slices."""
    if isinstance(node, ast.Call) and callee(node) in ("range", "arange") and len(node.args) == 1:
        yield source.replace(node.args[0], f"1, {source.text(node.args[0])} + 1")
    elif isinstance(node, ast.Slice):
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant):
                yield source.replace(bound, f"{source.text(bound)} + 1")


OPERATORS: dict[str, Operator] = {
    operator.__name__: operator
    for operator in (
        arithmetic,
        dropped_term,
        constant,
        sign,
        dropped_cast,
        narrower_format,
        other_function,
        comparison,
        axis,
        order,
        dropped_call,
        off_by_one,
    )
}


def _between(source: Source, left: ast.expr, right: ast.expr, old: str, new: str) -> Edit:
    start, end = source.span(left)[1], source.span(right)[0]
    return Edit(start, end, source.bytes[start:end].decode().replace(old, new, 1))


def _operand(source: Source, node: ast.expr) -> str:
    text = source.text(node)
    return f"({text})" if isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.BoolOp) else text


def callee(node: ast.Call) -> str:
    match node.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""
