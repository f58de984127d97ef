"""From a set of sites to patterns that name exactly this set: the inverse of `precision_lab.record.glob`.

A recipe lists the sites that a search chose. As patterns, `transformer_blocks.{0,3..7}.attn.to_{q,k}`, it stays
readable, and it is what a technique's `sites` expects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from precision_lab.record.address import join_address
from precision_lab.record.glob import LONGEST, MOST, named_sites

Product = tuple[frozenset[str], ...]
"""The names that each segment of a path may have; it stands for all combinations."""

_SHORTEST_RANGE = 3
"""The fewest consecutive numbers that are written as a range."""


def patterns_of(chosen: Collection[tuple[str, str]], among: Iterable[tuple[str, str]], default: str = "") -> list[str]:
    """Short patterns that name, of the sites `among`, exactly those in `chosen`; both are pairs of component and path.

    default: the component that a pattern need not name. The patterns are in the order of `among`. Each is a product of
    alternatives, so that the number of patterns is small rather than least, which would be a set cover.
    """
    everything = list(dict.fromkeys(among))
    wanted = set(chosen)
    strange = wanted.difference(everything)
    assert not strange, f"{min(strange)} is not among the sites"
    found: list[str] = []
    for component in dict.fromkeys(component for component, _ in everything):
        paths = [path for own, path in everything if own == component]
        own = [path for path in paths if (component, path) in wanted]
        if own:
            found += (join_address(component, glob, default=default) for glob in _globs(own, paths))
    return found


def _globs(chosen: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Globs for the paths `chosen` of a component: the fewer of those merged by numbers first and by names first."""
    if len(chosen) == len(paths):
        return ["**"]
    exact = set(chosen)
    written = []
    for numbers_first in (True, False):
        products = _merged(chosen, numbers_first)
        written.append([_written(product, exact, paths) for product in products])
    return min(written, key=lambda globs: (len(globs), sum(map(len, globs))))


def _merged(chosen: Sequence[str], numbers_first: bool) -> list[Product]:
    """Products whose paths are together `chosen`, in its order."""
    products: list[Product] = [tuple(frozenset((segment,)) for segment in path.split(".")) for path in chosen]
    for numbers in (numbers_first, not numbers_first):
        while (fewer := _merged_once(products, numbers)) is not None:
            products = fewer
    return products


def _merged_once(products: Sequence[Product], numbers: bool) -> list[Product] | None:
    """The products with those united that differ in one segment alone, the first where any do; None if none do.

    numbers: whether that segment holds numbers, or names.
    """
    for at in range(max(map(len, products))):
        united: dict[object, Product] = {}
        for product in products:
            may = at < len(product) and all(map(_is_number, product[at])) == numbers
            key = (product[:at], product[at + 1 :]) if may else product
            united[key] = (
                (*product[:at], united[key][at] | product[at], *product[at + 1 :]) if key in united else product
            )
        if len(united) < len(products) and all(map(_fits, united.values())):
            return list(united.values())
    return None


def _fits(product: Product) -> bool:
    """Whether the glob of a product stays within the bounds of the grammar."""
    count, length = 1, 0
    for names in product:
        count *= len(names)
        length += sum(len(name) + 1 for name in names) + 2
    return count <= MOST and length <= LONGEST


def _written(product: Product, exact: Collection[str], paths: Sequence[str]) -> str:
    """The glob of a product, with `*` for its numbers where that names no other path."""
    segments = [_alternatives(names) for names in product]
    for at, names in enumerate(product):
        if len(names) > 1 and all(map(_is_number, names)):
            starred = [*segments[:at], "*", *segments[at + 1 :]]
            named = {path for _, path in named_sites([".".join(starred)], (("", path) for path in paths), "")}
            if named.issubset(exact):
                segments = starred
    return ".".join(segments)


def _alternatives(names: frozenset[str]) -> str:
    """The names of one segment: one name, a range, or alternatives with what they begin and end with written once."""
    if len(names) == 1:
        return next(iter(names))
    if all(map(_is_number, names)):
        return _numbers(sorted(map(int, names)))
    words = sorted(name.split("_") for name in names)
    head = _common(words)
    tail = _common([each[head:][::-1] for each in words])
    inner = ",".join("_".join(each[head : len(each) - tail]) for each in words)
    first = words[0]
    return "_".join((*first[:head], f"{{{inner}}}", *first[len(first) - tail :]))


def _common(words: Sequence[Sequence[str]]) -> int:
    """How many words all begin with, at most all but one of the shortest."""
    shortest = min(map(len, words)) - 1
    return next((at for at in range(shortest) if len({each[at] for each in words}) > 1), shortest)


def _is_number(name: str) -> bool:
    return name.isdecimal() and name == str(int(name))


def _numbers(numbers: Sequence[int]) -> str:
    """`{0,3..7}`: consecutive numbers as ranges."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = []
    for run in runs:
        parts += [f"{run[0]}..{run[-1]}"] if len(run) >= _SHORTEST_RANGE else list(map(str, run))
    return f"{{{','.join(parts)}}}"
