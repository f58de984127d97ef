"""Powers of ten beside logarithmic axes are plain text, as matplotlib chooses them."""

import numpy as np
import pytest
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterMathtext

from precision_lab.report.figures import panels, style, ticks
from precision_lab.report.figures.style import Drawing


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (r"$\mathdefault{10^{-3}}$", "10⁻³"),
        (r"$\mathdefault{10^{12}}$", "10¹²"),
        (r"$\mathdefault{2^{−7}}$", "2⁻⁷"),
        (r"$\mathdefault{-10^{5}}$", "-10⁵"),
        (r"$\mathdefault{3\times10^{0}}$", "3×10⁰"),
        (r"$\mathdefault{0}$", "0"),
        ("", ""),
    ],
)
def test_exponents_are_raised_digits(label, text):
    assert ticks.plain(label) == text


@pytest.mark.parametrize("scale", [{"value": "log"}, {"value": "log", "base": 2}, {"value": "symlog", "linthresh": 1}])
def test_the_labels_are_those_of_matplotlib(scale):
    figure = Figure()
    axes = figure.subplots()
    axes.set_yscale(**scale)
    axes.set_ylim(1, 10 ** np.random.default_rng(3).uniform(2, 9))
    own = axes.yaxis.get_major_formatter()
    assert isinstance(own, LogFormatterMathtext)
    before = own.format_ticks(axes.yaxis.get_majorticklocs())
    ticks.write_powers_as_text(figure)
    after = axes.yaxis.get_major_formatter().format_ticks(axes.yaxis.get_majorticklocs())
    assert after == [ticks.plain(label) for label in before]
    assert any(after)


def test_no_file_has_the_marks_of_mathtext(tmp_path, monkeypatch):
    with style.theme():
        figure = style.new_figure(2)
        axes = figure.subplots(1, 2)
        axes[0].set_yscale("log")
        axes[0].set_ylim(1e-9, 1e9)
        panels.draw_scale(axes[1], LogNorm(1e-6, 1), "viridis", "share")
        monkeypatch.setitem(style.matplotlib.rcParams, "svg.fonttype", "none")
        _, svg = style.save(Drawing("made", "Made", figure, "made"), tmp_path)
    written = svg.read_text()
    assert "10⁻⁶" in written
    assert "mathdefault" not in written
    assert "$" not in written.split("</defs>")[-1]
