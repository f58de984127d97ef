"""Menus for tests: random ones, and models whose errors do not add up."""

import math
from itertools import product

import numpy as np

from precision_lab.analysis.search.menu import AS_STORED, Menu, Option, Place

KINDS = ("to_q", "to_k", "mlp.0", "mlp.2")


def random_menu(seed, groups=6, most=3, timed=False):
    """Some groups with one to `most` candidates each, whose bytes and errors are unrelated."""
    rng = np.random.default_rng(seed)
    places, options = [], []
    for at in range(groups):
        places.append(Place(f"g{at}", KINDS[at % len(KINDS)], at // len(KINDS)))
        stored = int(rng.integers(50, 200))
        own = [Option(AS_STORED, stored, 0.0)]
        for number in range(int(rng.integers(1, most + 1))):
            seconds = float(rng.normal()) if timed else math.nan
            own.append(Option(f"c{number}", int(rng.integers(5, stored)), float(rng.lognormal(-3, 2)), seconds))
        options.append(tuple(own))
    return Menu(tuple(places), tuple(options), weights=groups * 100, fixed=int(rng.integers(0, 50)))


def every_choice(menu):
    return list(product(*(range(len(own)) for own in menu.options)))


def equal_menu(blocks=4, error=1e-4, tempting=None):
    """The same two candidates with the same predicted errors, bytes apart, at each operation of each block.

    tempting: an operation whose groups are predicted to be a little less sensitive than all others.
    """
    places = tuple(Place(f"{block}.{kind}", kind, block) for kind in KINDS for block in range(blocks))
    options = []
    for place in places:
        own = error * (0.9 if place.operation == tempting else 1.0)
        options.append((Option(AS_STORED, 160, 0.0), Option("four", 45, own), Option("eight", 85, own / 256)))
    return Menu(places, tuple(options), weights=80 * len(places))


def reinforcing(menu, kind):
    """The drift of a model in which the errors of one operation point into the same direction in all blocks.

    Each is as predicted by itself. Together they add up before they are squared.
    """

    def drift(choice):
        chosen = list(zip(menu.places, menu.of(choice), strict=True))
        together = sum(math.sqrt(option.error) for place, option in chosen if place.operation == kind)
        others = sum(option.error for place, option in chosen if place.operation != kind)
        return math.sqrt(together**2 + others)

    return drift


def searched(strategy, drift, cases=(1.0, 1.3)):
    """Runs a strategy to its end; returns everything that it asked for."""
    asked = []
    while choices := strategy.ask():
        asked += choices
        strategy.tell([[drift(choice) * case for case in cases] for choice in choices])
    return asked
