"""--help: every setting has a meaning, every option a line, every command an example that composes, in time."""

import dataclasses
import shlex
import subprocess
import sys
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hydra import compose
from pydantic import BaseModel

from precision_lab import cli
from precision_lab.cli import culprits_schema, meanings, scales_schema, schema, search_schema, survival_schema
from precision_lab.cli.literal import literal
from tests.composing import CONF, configurations

ROOTS = {
    "config": schema.Experiment,
    "gate": schema.Gate,
    "prove": schema.Prove,
    "sensitivity": schema.Sensitivity,
    "search": search_schema.Search,
    "scales": scales_schema.Scales,
    "fp8_scales": scales_schema.Fp8Scales,
    "culprits": culprits_schema.Culprits,
    "survival": survival_schema.Survival,
    "report": schema.Report,
    "compare": schema.Compare,
    "compare_dump": schema.CompareDump,
    "compare_devices": schema.CompareDevices,
    "device": schema.Device,
    "submit": schema.Submit,
    "models": schema.Models,
    "dump_inputs": schema.DumpInputs,
    "recipe": schema.Recipe,
}
# settings that only the file of a model fills, and those of `gate` under `run`, which has no use for them
UNSTATED = ("sites", "gate")
# mappings of a user's names, whose entries have no meaning of their own
FREE = ("variants.", "scalings.", "pinned.cases.", "gate.")
EXAMPLES = [(root, command) for root in ROOTS for command, _ in meanings.root(root).examples]


def test_every_root_configuration_is_known_here():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(ROOTS)
    assert {config for _, config in (*cli.COMMANDS.values(), *cli.TASKS.values(), *cli.STRATEGIES.values())} == set(
        ROOTS
    )


@pytest.mark.parametrize("name", ROOTS)
def test_every_setting_of_a_command_has_a_meaning(name):
    root = meanings.root(name)
    stated = root.settings
    beside = schema.BesideAModel.model_fields if issubclass(ROOTS[name], schema.BesideAModel) else {}
    for key in fields(ROOTS[name]):
        if key in UNSTATED or (key in beside and key not in stated):
            continue
        assert key in stated, f"conf/{name}.yaml does not list {key}"
        assert len(stated[key].meaning) > 5, f"conf/{name}.yaml: {key} has no comment above it"
    for key, setting in stated.items():
        assert setting.meaning or key.startswith(FREE), f"conf/{name}.yaml: {key} has no comment above it"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_every_setting_of_a_model_has_a_meaning(name):
    found = meanings.commented(CONF / "model" / f"{name}.yaml")
    described = meanings.of_model(name) or found
    for key in leaves(yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())):
        holder = key.partition(".")[0]
        if holder in ("model", "sampler", "image") and not key.endswith("_target_"):
            assert described[key].meaning, f"conf/model/{name}.yaml: {key} has no comment above it"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_lines_are_read_as_yaml_reads_them(path):
    content = yaml.safe_load(path.read_text())
    expected = {key for key in leaves(content) if key.partition(".")[0] not in ("defaults", "hydra")}
    found = meanings.commented(path)
    assert expected <= found.keys()
    for key in expected:
        value = content
        for part in key.split("."):
            value = value[part]
        assert yaml.safe_load(found[key].default or "null") == value or found[key].default == ""


@pytest.mark.parametrize("group", ["exp", "technique", "probe", "candidate", "claim", "model", "sampler", "sites"])
def test_every_option_has_a_line(group):
    for name, meaning in meanings.options(group).items():
        assert len(meaning) > 10, f"conf/{group}/{name}.yaml begins without a comment"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_page_of_a_command(name, capsys):
    config = cli.COMMANDS[name][1]
    root = meanings.root(config)
    assert cli.main([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert root.examples
    assert {"Reads", "Writes"} <= root.sections.keys()
    flat = " ".join(page.split())
    for key, setting in root.settings.items():
        if setting.meaning:
            assert f" {key}" in page
            assert setting.meaning in flat
    for group in root.groups:
        for option, meaning in meanings.options(group.name).items():
            assert f"\n  {option}" in page
            assert meaning in flat
    for example, meaning in root.examples:
        assert example in page
        assert meaning in flat
    for code in ("0", "1", "2", "3", "130"):
        assert f"\n  {code} " in page
    assert max(map(len, page.splitlines())) <= 120


def test_the_page_of_the_program_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    for name in (*cli.COMMANDS, cli.COMPLETION):
        assert f"\n  {name} " in page
    assert cli.main(["-h"]) == 0
    assert capsys.readouterr().out == page


def test_a_task_of_a_command_has_a_page_of_its_own(capsys):
    for words, expected in (
        (["search", "strategy=scales"], "overflow"),
        (["compare", "dump=x"], "safetensors"),
        (["models", "dump_inputs=x"], "step"),
    ):
        assert cli.main([*words, "--help"]) == 0
        assert expected in capsys.readouterr().out
    assert cli.main(["gat", "--help"]) == 2
    assert "Did you mean gate?" in capsys.readouterr().err


def test_the_settings_of_the_chosen_model_are_shown(capsys):
    assert cli.main(["run", "model=mlx_lm", "--help"]) == 0
    page = capsys.readouterr().out
    assert "Settings of the model (model=mlx_lm)" in page
    assert "processed one by one" in page
    assert "guidance_scale=" not in page


@pytest.mark.parametrize("name", ROOTS)
def test_the_names_in_examples_exist(name):
    """A quick form of the next test: every override is a setting, or an option of a group, of the command."""
    root = meanings.root(name)
    known = {**root.settings, **meanings.of_model("micro")}
    for example, _ in root.examples:
        command, rest = cli._split([word for word in shlex.split(example)[3:] if word != "-m"])
        assert cli.task_of(command, rest)[1] == name or (name == "search" and command == "search")
        other = meanings.root(cli.task_of(command, rest)[1])
        for word in rest:
            key, _, value = word.partition("=")
            group = next((group for group in other.groups if group.override == f"{key}="), None)
            assert group or key in {**known, **other.settings}, word
            for option in value.strip("[]").split(",") if group else ():
                assert option in meanings.options(group.name), word


@pytest.mark.slow
@pytest.mark.parametrize(("root", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_an_example_composes(root, example):
    words = shlex.split(example)
    command, rest = cli._split([word for word in words[3:] if word != "-m"])
    first = [word.split(",")[0] if "-m" in words[3:] and "[" not in word else word for word in rest]
    tree = composed(cli.task_of(command, rest)[1], tuple(first))
    assert schema.read(ROOTS[cli.task_of(command, rest)[1]], tree)


def test_help_is_quick():
    """Counted in the time of the processor: other processes share the machine."""
    for arguments in (["--help"], ["search", "--help"]):
        seconds = [measured(arguments)]
        while min(seconds) >= 0.2 and len(seconds) < 5:  # where a processor is shared, its caches are too
            seconds.append(measured(arguments))
        assert min(seconds) < 0.2, f"{arguments} took {min(seconds):.2f} s of processor time"


def measured(arguments):
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "precision_lab", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@cache
def composed(root, overrides):
    with configurations():
        return literal(compose(root, overrides=list(overrides)))


def fields(kind, key=""):
    """Dotted names of the settings of a class, and of the classes that its settings are."""
    hints = get_type_hints(kind, include_extras=True)
    if issubclass(kind, BaseModel):
        names = {field.alias or name: hints[name] for name, field in kind.model_fields.items()}
    else:
        names = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for name, annotation in names.items():
        full = f"{key}.{name}" if key else name
        yield full
        for inner in kinds(annotation):
            if isinstance(inner, type) and (issubclass(inner, BaseModel) or dataclasses.is_dataclass(inner)):
                yield from fields(inner, full)


def kinds(annotation: Any):
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) if each is not NoneType for kind in kinds(each)]
    return [annotation]


def leaves(content, key=""):
    for name, value in content.items():
        full = f"{key}.{name}" if key else str(name)
        if isinstance(value, dict) and value and not full.startswith(("variants", "pinned.cases", "criterion")):
            yield from leaves(value, full)
        else:
            yield full
