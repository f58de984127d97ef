"""Scenes, their captions, and which of them are held out from training."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from itertools import product

from precision_lab.errors import InputError, nearest
from precision_lab.shapes.outlines import SHAPES
from precision_lab.shapes.palette import COLORS

COUNT_WORDS = {1: "a", 2: "two", 3: "three"}
COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
TRANSPARENT = "transparent"
"""The background of pictures with an alpha channel; not a colour, so objects cannot have it."""
BACKGROUNDS = (*COLORS, TRANSPARENT)
HELD_OUT_ONE_IN = 10
LISTED = 5
"""Number of near choices that an error message lists; without near ones it lists up to twice as many, which is all."""


@dataclass(frozen=True)
class Scene:
    """The content of a picture. `size` None means medium, `position` None the centre; the caption omits both.

    Raises InputError for a value outside the world, or objects of the background's colour.
    """

    count: int
    size: str | None
    color: str
    shape: str
    background: str
    position: str | None

    def __post_init__(self) -> None:
        if self.count not in COUNT_WORDS:
            raise InputError(f"A scene has 1, 2 or 3 objects, got {self.count!r}")
        for name, choices in (
            ("size", (None, *SIZES)),
            ("color", COLORS),
            ("shape", SHAPES),
            ("background", BACKGROUNDS),
            ("position", (None, *POSITIONS)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"No {name} {value!r}. {nearest(str(value), filter(None, choices), LISTED)}")
        if self.color == self.background:
            raise InputError(f"Objects of the background's colour, {self.color}, cannot be seen: choose two colours")

    @property
    def caption(self) -> str:
        """`{a|two|three} [small|large] {color} {shape}[s] on a {background} background[, {position}]`."""
        noun = self.shape if self.count == 1 else PLURALS[self.shape]
        objects = " ".join(filter(None, (COUNT_WORDS[self.count], self.size, self.color, noun)))
        where = f", {self.position}" if self.position else ""
        return f"{objects} on a {self.background} background{where}"

    @property
    def held_out(self) -> bool:
        """Whether this combination of count, colour, shape and background is held out, in every size and position.

        The choice depends on a CRC-32, which is the same on every machine, unlike `hash`.
        """
        combination = f"{self.count} {self.color} {self.shape} {self.background}"
        return zlib.crc32(combination.encode()) % HELD_OUT_ONE_IN == 0


def parse(caption: str) -> Scene:
    """Parses a caption, ignoring case, commas and repeated spaces; a single object may be "a", "an" or "one".

    Raises InputError that names the first unexpected word and the words expected there.
    """
    words = iter(caption.lower().replace(",", " ").split())

    def take(noun: str, choices: Collection[str]) -> str:
        word = next(words, None)
        if word is None:
            raise InputError(f"The caption {caption!r} ends where {noun} is expected. {nearest('', choices, LISTED)}")
        if word not in choices:
            raise InputError(f"In {caption!r}, {word!r} is not {noun}. {nearest(word, choices, LISTED)}")
        return word

    count = COUNTS[take("a count", COUNTS)]
    word = take("a size or colour", (*SIZES, *COLORS))
    size = word if word in SIZES else None
    color = take("a colour", COLORS) if size else word
    nouns = {shape if count == 1 else PLURALS[shape]: shape for shape in SHAPES}
    shape = nouns[take(f"a shape, in the {'singular' if count == 1 else 'plural'}", nouns)]
    take('the word "on"', ("on",))
    take('the word "a"', ("a", "an"))
    background = take("a colour or transparent", BACKGROUNDS)
    take('the word "background"', ("background",))
    rest = list(words)
    if len(rest) > 1:
        raise InputError(f"In {caption!r}, {rest[1]!r} follows {rest[0]!r}, which must be the last word")
    if rest and rest[0] not in POSITIONS:
        raise InputError(f"In {caption!r}, {rest[0]!r} is not a position. {nearest(rest[0], POSITIONS, LISTED)}")
    return Scene(count, size, color, shape, background, rest[0] if rest else None)


@cache
def all_scenes(transparent: bool = False) -> tuple[Scene, ...]:
    """All 12,600 scenes with a background of one colour, in a fixed order.

    `transparent` appends the 1,800 scenes with a transparent background.
    """
    values = product(COUNT_WORDS, (None, *SIZES), COLORS, SHAPES, COLORS, (None, *POSITIONS))
    opaque = tuple(
        Scene(count, size, color, shape, background, position)
        for count, size, color, shape, background, position in values
        if color != background
    )
    if not transparent:
        return opaque
    values = product(COUNT_WORDS, (None, *SIZES), COLORS, SHAPES, (TRANSPARENT,), (None, *POSITIONS))
    return opaque + tuple(Scene(*attributes) for attributes in values)


@cache
def training_scenes(transparent: bool = False) -> tuple[Scene, ...]:
    """The scenes that training pictures may show, in the order of `all_scenes`."""
    return tuple(scene for scene in all_scenes(transparent) if not scene.held_out)


@cache
def held_out_scenes(transparent: bool = False) -> tuple[Scene, ...]:
    """The scenes held out for testing, about one combination in ten, in the order of `all_scenes`."""
    return tuple(scene for scene in all_scenes(transparent) if scene.held_out)
