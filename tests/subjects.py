"""Sources and cases of Qwen-Image for tests, and whole generations."""

from dataclasses import asdict

from precision_lab.lab.subject import Case, generation, picture_of
from precision_lab.model.qwen_image.settings import Settings
from precision_lab.synthetic.source import QwenImage


def source(folder, **settings):
    """The checkpoint in a folder, with settings of the model."""
    return QwenImage("small", str(folder), **settings)


def settings(**changed):
    """All settings of a case, the default ones but for those that are given."""
    return asdict(Settings(**changed))


def case(prompt, seed, **changed):
    return Case(0, prompt, seed, settings(**changed))


def picture(subject, case, on_step=lambda number, before, step: None):
    """The picture of a case; `on_step` is called with the number of each step, the state before it and the step."""
    for number, (before, step) in enumerate(generation(subject, case, case.settings["steps"])):
        on_step(number, before, step)
        state = step.state
    return picture_of(subject, state)
