"""Captions, the order of scenes, and the held-out scenes."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import pytest

from precision_lab.errors import InputError
from precision_lab.shapes import Scene, all_scenes, held_out_scenes, parse, training_scenes

ATTRIBUTES = ("count", "size", "color", "shape", "background", "position")


def test_the_world_is_complete() -> None:
    assert len(all_scenes()) == len(set(all_scenes())) == 3 * 3 * 8 * 5 * 7 * 5


def test_every_caption_names_its_scene() -> None:
    assert all(parse(scene.caption) == scene for scene in all_scenes())
    assert len({scene.caption for scene in all_scenes()}) == len(all_scenes())


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("two red circles on a blue background, left", Scene(2, None, "red", "circle", "blue", "left")),
        ("a green square on a white background", Scene(1, None, "green", "square", "white", None)),
        ("three large purple crosses on a cyan background, top", Scene(3, "large", "purple", "cross", "cyan", "top")),
    ],
)
def test_captions_of_the_grammar(caption: str, scene: Scene) -> None:
    assert scene.caption == caption
    assert parse(caption) == scene


@pytest.mark.parametrize("count", ["a", "an", "one", "ONE"])
def test_one_object_has_several_words(count: str) -> None:
    assert parse(f"{count} red  star on a black background ,top") == Scene(1, None, "red", "star", "black", "top")


@pytest.mark.parametrize(
    ("caption", "word", "choice"),
    [
        ("", "ends", "three"),
        ("four red circles on a blue background", "four", "three"),
        ("two redd circles on a blue background", "redd", "red"),
        ("two smal red circles on a blue background", "smal", "small"),
        ("two small small circles on a blue background", "small", "yellow"),
        ("two red circle on a blue background", "circle", "circles"),
        ("a red crosses on a blue background", "crosses", "cross"),
        ("a red circle in a blue background", "in", "on"),
        ("a red circle on the blue background", "the", "a"),
        ("a red circle on a blu background", "blu", "blue"),
        ("a red circle on a blue backdrop", "backdrop", "background"),
        ("a red circle on a blue", "ends", "background"),
        ("a red circle on a blue background, botom", "botom", "bottom"),
        ("a red circle on a blue background, left top", "top", "left"),
        ("a red circle on a red background", "red", "two colours"),
    ],
)
def test_a_bad_caption_is_rejected_with_the_nearest_choice(caption: str, word: str, choice: str) -> None:
    with pytest.raises(InputError) as error:
        parse(caption)
    message = str(error.value)
    assert word in message
    assert choice in message.replace(caption, "")
    assert message.count("\n") < 2


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ((4, None, "red", "star", "blue", None), "1, 2 or 3"),
        ((1, "smal", "red", "star", "blue", None), "small"),
        ((1, "medium", "red", "star", "blue", None), "large"),
        ((1, None, "gren", "star", "blue", None), "green"),
        ((1, None, "red", "stars", "blue", None), "star"),
        ((1, None, "red", "star", "bleu", None), "blue"),
        ((1, None, "red", "star", "blue", "lft"), "left"),
        ((1, None, "red", "star", "red", None), "two colours"),
    ],
)
def test_a_scene_outside_the_world_is_rejected(values: tuple[int, str, str, str, str, str], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        Scene(*values)


def test_a_tenth_is_held_out_and_the_rest_is_for_training() -> None:
    held_out, training = set(held_out_scenes()), set(training_scenes())
    assert held_out | training == set(all_scenes())
    assert not held_out & training
    assert 0.08 < len(held_out) / len(all_scenes()) < 0.13


def test_holding_out_does_not_depend_on_size_and_position() -> None:
    def combinations_of(scenes: tuple[Scene, ...]) -> set[tuple[int, str, str, str]]:
        return {(s.count, s.color, s.shape, s.background) for s in scenes}

    assert not combinations_of(held_out_scenes()) & combinations_of(training_scenes())


@pytest.mark.parametrize("pair", list(combinations(ATTRIBUTES, 2)), ids="-".join)
def test_training_shows_every_pair_of_values(pair: tuple[str, str]) -> None:
    def pairs(scenes: tuple[Scene, ...]) -> set[tuple[object, object]]:
        return {(getattr(s, pair[0]), getattr(s, pair[1])) for s in scenes}

    assert pairs(training_scenes()) == pairs(all_scenes())


def test_every_value_is_held_out_somewhere() -> None:
    for name in ATTRIBUTES:
        assert {getattr(s, name) for s in held_out_scenes()} == {getattr(s, name) for s in all_scenes()}


def test_other_processes_hold_out_the_same() -> None:
    """Unlike Python's hash of a string, the choice is the same in every process."""
    code = "from precision_lab.shapes import all_scenes; print(''.join(str(int(s.held_out)) for s in all_scenes()))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "".join(str(int(s.held_out)) for s in all_scenes())


def test_transparent_scenes_are_added_and_change_no_other() -> None:
    added = all_scenes(transparent=True)[len(all_scenes()) :]
    assert all_scenes(transparent=True)[: len(all_scenes())] == all_scenes()
    assert len(set(added)) == len(added) == 3 * 3 * 8 * 5 * 5
    assert {scene.background for scene in added} == {"transparent"}
    assert "transparent" not in {scene.background for scene in all_scenes()}
    assert all(parse(scene.caption) == scene for scene in added)


def test_transparent_scenes_are_held_out_by_the_same_rule() -> None:
    training, held_out = training_scenes(transparent=True), held_out_scenes(transparent=True)
    assert training[: len(training_scenes())] == training_scenes()
    assert held_out[: len(held_out_scenes())] == held_out_scenes()
    assert sorted(map(repr, training + held_out)) == sorted(map(repr, all_scenes(transparent=True)))
    added = held_out[len(held_out_scenes()) :]
    assert 0.07 < len(added) / 1800 < 0.13
    combinations = {(scene.count, scene.color, scene.shape) for scene in added}
    assert not combinations & {
        (scene.count, scene.color, scene.shape) for scene in training if scene.background == "transparent"
    }


def test_a_transparent_background_has_a_caption_but_no_object_is_transparent() -> None:
    caption = "two red circles on a transparent background, left"
    assert parse(caption) == Scene(2, None, "red", "circle", "transparent", "left")
    assert parse(caption).caption == caption
    with pytest.raises(InputError, match="transparent"):
        parse("two transparent circles on a blue background")
    with pytest.raises(InputError, match="No color 'transparent'"):
        Scene(1, None, "transparent", "star", "blue", None)
    with pytest.raises(InputError, match="transparent"):
        parse("a red circle on a transparant background")
