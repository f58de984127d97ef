"""The terminal: text of users is printed as it is, and the tables of every command fit the width."""

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hydra import compose
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from precision_lab.analysis.gate.violation import Findings, Violation
from precision_lab.analysis.summary import summarize
from precision_lab.cli import device, listing, prove, verdict
from precision_lab.cli.config import build_spec
from precision_lab.cli.progress import Lines, showing
from precision_lab.cli.summary import print_summary
from precision_lab.cli.terminal import Terminal, print_table
from precision_lab.errors import visible
from tests.composing import configurations
from tests.fabricated import QWEN_IMAGE, run_of
from tests.spread import thinned

WIDTHS = (80, 100)
HOSTILE = ("[matmul] failed", "[/]", "[red]x[/red]", "$5 and $6", ":smile:", r"$\frac{1$", "a\\[b]", "<b>&amp;</b>")


def printed(width, action):
    console = Terminal(width=width, color_system=None)
    with console.capture() as captured:
        action(console)
    return captured.get()


def lines_that_fit(text, width):
    """The lines of a printed table; fails if one is wider than the terminal."""
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width, max(lines, key=cell_len)
    return lines


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_printed_as_it_is_written(text):
    assert printed(80, lambda console: console.print(text)) == f"{text}\n"
    table = printed(80, lambda console: print_table(console, [text, "b"], [(text, text)], title=text))
    assert [line.rstrip() for line in table.splitlines()] == [text, f"{text}  b".rstrip(), f"{text}  {text}"]
    assert printed(80, lambda console: Lines(console).note(text)) == f"{text}\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_progress_bar_shows_its_label_as_it_is_written(text):
    def work(console):
        with showing(console) as progress:
            progress.start(1)
            progress.advance(1, text)

    console = Terminal(width=160, color_system=None, force_terminal=True, force_interactive=False)
    with console.capture() as captured:
        work(console)
    assert text in captured.get()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\rb", r"a\rb"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\ud800", r"\ud800"),
        ("\x9b2J\x07\x00", r"\x9b2J\x07\x00"),
        ("雪山 é 👩‍🚀\tx", "雪山 é 👩‍🚀\tx"),
    ],
)
def test_control_characters_are_shown_not_obeyed(text, shown):
    assert visible(text) == shown
    if "\t" not in text:
        assert printed(80, lambda console: console.print(text)) == f"{shown}\n"
        assert shown in printed(80, lambda console: print_table(console, ["a"], [(text,)]))


WORDS = st.text("abc_+./ 1雪", max_size=60)


@given(st.data(), st.integers(30, 140), st.integers(2, 7))
def test_no_character_of_a_table_is_lost_and_no_line_is_too_wide(data, width, count):
    columns = [f"column {number}" for number in range(count)]
    rows = data.draw(st.lists(st.tuples(*[WORDS] * count), min_size=1, max_size=3))
    folding = data.draw(st.sets(st.sampled_from(columns)))
    text = printed(width, lambda console: print_table(console, columns, rows, folding=folding))
    lines_that_fit(text, width)
    wanted = Counter("".join("".join(row) for row in (columns, *rows)).replace(" ", ""))
    assert not wanted - Counter(text.replace(" ", ""))


def test_a_table_that_fits_is_one_block_and_one_that_does_not_repeats_its_first_columns():
    columns, rows = ["name", "kind", "value " * 3, "other " * 3], [("x", "y", "1" * 20, "2" * 20)]
    wide = printed(60, lambda console: print_table(console, columns, rows, keys=2))
    assert len(wide.splitlines()) == 2
    narrow = printed(40, lambda console: print_table(console, columns, rows, keys=2))
    assert [line.split()[:3] for line in narrow.splitlines() if line.startswith("x")] == [
        ["x", "y", "1" * 20],
        ["x", "y", "2" * 20],
    ]


def test_names_break_at_punctuation_and_sentences_at_spaces():
    table = printed(22, lambda console: print_table(console, ["a"], [("fp32_residual+pre_attention_scaling",)]))
    assert [line.strip() for line in table.splitlines()] == ["a", "fp32_residual+pre_", "attention_scaling"]
    table = printed(30, lambda console: print_table(console, ["a"], [("The published weights, from model.path=DIR",)]))
    assert [line.strip() for line in table.splitlines()] == ["a", "The published weights, from", "model.path=DIR"]


def test_a_style_is_kept():
    console = Terminal(width=80, color_system="standard", force_terminal=True)
    with console.capture() as captured:
        print_table(console, ["a"], [(Text("[refuted]", style="red"),)])
    assert "\x1b[31m[refuted]" in captured.get()


@pytest.fixture(scope="module")
def names():
    """The longest names of variants in a shipped experiment, and one with every shipped factor."""
    with configurations():
        specs = [build_spec(compose("config", overrides=[f"+exp={name}"]), []) for name in ("factorial", "recipes")]
    longest = sorted((variant.name for spec in specs for variant in spec.variants), key=len)[-4:]
    assert len(longest[-1]) > 45
    return longest


@pytest.mark.parametrize("width", WIDTHS)
def test_the_summary_of_a_run_fits(tmp_path, names, width):
    place = {"prompt_id": 0, "seed": 0, "branch": "cond", "step": 3, "component": "transformer", "block": 3}
    place |= {"site": "transformer_blocks.3.attn.to_add_out", "port": "out.1", "dtype": "float16", "order": 0}
    activations = pd.DataFrame(
        [{**place, "variant": name, "amax": np.nan, "num_nan": 123456, "num_inf": 7} for name in names]
    )
    rounds = [
        {"variant": name, "round": number, "what": "step", "seconds": 0.1 + 0.001 * number + 0.01 * at}
        for at, name in enumerate(names)
        for number in range(5)
    ]
    tables = {"activations": activations, "latency": pd.DataFrame(rounds).assign(peak_memory_bytes=1)}
    run = run_of(tables, names, tmp_path, layout=QWEN_IMAGE)
    text = printed(width, lambda console: print_summary(summarize(run), run.layout, console))
    lines = lines_that_fit(text, width)
    joined = "".join(text.split())
    for name in names:
        assert any(line.startswith(name[:12]) for line in lines)
    assert "123463," in joined
    assert text.count("slower") == len(names) - 1
    assert re.search(r"1\.\d{3} \[1\.\d{3}, 1\.\d{3}\] slower", text), "a number is never broken"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_widths_and_answers_of_a_device_fit(width):
    evidence = "bfloat16, n 65536: 7.98 bits (accumulator_bits); partial sums of [4, 8] rows keep no more"
    op = {"op": "quantized_matmul affine 4-bit", "bits": {"float32": 23.9, "bfloat16": 7.98}, "verdict": "refuted"}
    finding = {"op": op["op"], "property": "rounds_what", "answer": "q*scale, scores, probabilities"}
    check = {"name": "quantised_8bit_4096_rows", "verdict": "present", "title": "rows beyond 4,096 are wrong"}
    record = {
        "checks": [
            {**check, "measured": "12 of 40,000 rows differ", "links": ["https://github.com/ml-explore/mlx/issues/1"]}
        ],
        "environment": {"device": "AMD EPYC 9354 32-Core Processor, revision 1", "backend": "cpu", "mlx": "0.32.1"},
        "s6": {"ops": [{**op, "evidence": evidence}]},
        "findings": [{**finding, "dtype": dtype} for dtype in ("float32", "bfloat16", "float16")],
        "claims": [],
    }
    text = printed(width, lambda console: device._print(record, console))
    lines_that_fit(text, width)
    words = text.replace("\n", " ").split()
    assert {"[4,", "8]", "7.98", "refuted", "probabilities", "present"} <= set(words)


@pytest.mark.parametrize("width", thinned(WIDTHS, keep=1))
def test_the_lists_of_prove_and_models_fit(width, names):
    rows = [
        (name, True, "another function", "transformer_blocks.59.attn.to_add_out", 1.23e-5, 4.56e-7) for name in names
    ]
    text = printed(width, lambda console: prove._print(rows, "micro, 3 draws, fp32", console))
    lines_that_fit(text, width)
    assert text.count("1.23e-05") == len(names)
    text = printed(width, listing.show)
    lines_that_fit(text, width)
    assert "model=transformer_synthetic" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_deviations_of_a_gate_fit(tmp_path, names, width):
    site = "transformer_blocks.59.attn.to_add_out"
    place = {"variant": names[-1], "component": "transformer", "site": site, "shown": f"{site} (out.1)", "step": 3}
    violation = Violation("ranges", "amax", "[1.5, 2.5] bits", "9.25 bits", **place, order=7, magnitude=7.0)
    record = {
        "passed": False,
        "checks": {"ranges": 3},
        "baseline": {"path": "p", "device": "d", "mlx": "m", "match": "x"},
    }
    text = printed(width, lambda console: verdict._print(tmp_path, record, Findings([violation]), console))
    table = text.split("baseline:")[0]
    lines_that_fit(table, width)
    assert "[1.5, 2.5] bits" in " ".join(table.split())
