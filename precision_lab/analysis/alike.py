"""In what two runs are alike: every difference by name, and the cases whose outcomes can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from precision_lab.record.run import Run

CaseKey = tuple[int, int]
"""(prompt_id, seed)"""

_OF_THE_RUN = ("status", "command", "started", "finished", "claims", "columns", "layout")
"""Entries of the manifest that are no facts, or that are stated otherwise."""

_STATED = ("experiment", "prompts", "seeds", "sampler", "image", "baseline", "dtype", "sites")
"""Settings whose effect the manifest states."""

_OF_NO_EFFECT = ("only", "workers", "learning", "out", "resume")
"""Settings that change no number of a run, or only which variants there are."""

_ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """One way in which two runs differ, with what each of them has, as text."""

    what: str
    first: str
    second: str


def facts(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers of a run, by dotted names: its manifest, and the rest of its configuration.

    settings: the content of config.yaml, empty where there is none. The techniques' own settings are only there.
    """
    recorded = asdict(run.manifest)
    for entry in recorded["variants"].values():
        del entry["weights"]  # follows from linear_weights and the checkpoint, and earlier runs do not have it
    order = ("checkpoint", "case", "prompts", "seeds", "variants")
    entries = {name: recorded[name] for name in order}
    entries |= {name: entry for name, entry in recorded.items() if name not in (*order, *_OF_THE_RUN)}
    if run.manifest.status != "complete":
        entries["status"] = run.manifest.status
    found = dict(leaves(entries))
    rest = {str(name): value for name, value in settings.items() if name not in (*_STATED, *_OF_NO_EFFECT)}
    weights = recorded["checkpoint"]
    stated = {
        "variants": {*_mapping(rest, "variants")} - recorded["variants"].keys(),  # `only` left them out
        "model": {"name", "path", "weights_dtype", *weights["settings"], *weights["resources"]},
    }
    for group, names in stated.items():
        rest[group] = {key: value for key, value in _mapping(rest, group).items() if key not in names}
    return found | {name: value for name, value in leaves(rest) if name not in found}


def _mapping(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = settings.get(name)
    return value if isinstance(value, Mapping) else {}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings by dotted names; a list is one entry, and so is an empty mapping."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, list(value) if isinstance(value, tuple) else value


def same_model(first: Run, second: Run) -> bool:
    """Whether an address, a stream and the result mean the same in both runs."""
    return first.layout == second.layout


def difference_of_models(first: Run, second: Run) -> str:
    """In words, where two models differ in kind: components, blocks, streams, results. Empty if they do not."""
    one, other = asdict(first.layout), asdict(second.layout)
    parts = [f"{name} {text_of(one[name])} and {text_of(other[name])}" for name in one if one[name] != other[name]]
    names = f"{first.manifest.checkpoint.name} and {second.manifest.checkpoint.name}"
    return f"{names} ({'; '.join(parts)})" if parts else ""


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Every fact that two runs do not share, in the order of `facts`."""
    found = []
    for name in dict.fromkeys((*first, *second)):
        one, other = first.get(name, _ABSENT), second.get(name, _ABSENT)
        if (one is _ABSENT and other in ({}, [], None)) or (other is _ABSENT and one in ({}, [], None)):
            continue
        if one is _ABSENT or other is _ABSENT or one != other:
            found.append(Difference(name, *_words(one, other)))
    return _gathered(found)


def _gathered(found: Sequence[Difference]) -> list[Difference]:
    """A variant, technique or claim that only one run has is one difference, not one for each of its settings."""
    groups: dict[str, list[Difference]] = {}
    for difference in found:
        segments = difference.what.split(".")
        groups.setdefault(".".join(segments[:2]), []).append(difference)
    gathered = []
    for name, group in groups.items():
        for one, other in (("first", "second"), ("second", "first")):
            if len(group) > 1 and all(getattr(difference, other) == MISSING for difference in group):
                texts = ", ".join(f"{d.what.removeprefix(f'{name}.')} {getattr(d, one)}" for d in group)
                gathered.append(Difference(name, *((texts, MISSING) if one == "first" else (MISSING, texts))))
                break
        else:
            gathered += group
    return gathered


MISSING = "-"
"""What a run has that lacks an entry."""


def _words(one: Any, other: Any) -> tuple[str, str]:
    if isinstance(one, list) and isinstance(other, list):
        left, right = ([item for item in x if item not in y] for x, y in ((one, other), (other, one)))
        if left or right:
            return _listed(left, len(one)), _listed(right, len(other))
    return text_of(one), text_of(other)


def _listed(own: list[Any], count: int) -> str:
    """The items of a list that the other one lacks."""
    if not own:
        return f"none of its own ({count})" if count else "none"
    return text_of(own)


def text_of(value: Any) -> str:
    """A fact as text: a list by its items, a hash by its first digits."""
    if value is _ABSENT:
        return MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "not set"
    text = str(value)
    digits = text.rpartition(":")[2]
    return f"{digits[:12]}…" if len(digits) >= 40 and set(digits) <= set("0123456789abcdef") else text


def shared_cases(first: Run, second: Run, one: str | None = None, other: str | None = None) -> dict[CaseKey, CaseKey]:
    """The cases of the first run with those of the second that have the same prompt, seed and settings.

    one, other: variants of the first and the second run, for cases with their own settings; by default those of the
    runs. Empty if the settings of a case differ (steps, guidance, size). The same prompt may have another number.
    """
    if _case(first, one) != _case(second, other):
        return {}
    numbers = {prompt: number for number, prompt in enumerate(second.manifest.prompts)}
    seeds = [seed for seed in first.manifest.seeds if seed in second.manifest.seeds]
    prompts = enumerate(first.manifest.prompts)
    return {(own, seed): (numbers[prompt], seed) for own, prompt in prompts if prompt in numbers for seed in seeds}


def _case(run: Run, variant: str | None) -> dict[str, Any]:
    """The settings of a case, with those that a variant overrides."""
    own = run.manifest.variants[variant].settings if variant is not None else {}
    return {**run.manifest.case, **own}
