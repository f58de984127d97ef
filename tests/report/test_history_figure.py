"""The page on a gate's history, from tables of any size: one run, few sites, all sites of a model, several machines."""

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.gate.history import COLUMNS
from precision_lab.analysis.history import read, steps
from precision_lab.report import history as page
from precision_lab.report.figures import history_lines, history_map, style

INNER = ("img_norm1", "attn.to_q", "attn.to_out", "img_add1", "img_mlp", "txt_mlp")


def addresses(blocks, inner=INNER):
    yield from ("text_encoder:layers.0", "pipeline:timestep", "transformer:img_in")
    for block in range(blocks):
        yield from (f"transformer:transformer_blocks.{block}.{name}" for name in inner)
        yield f"transformer:transformer_blocks.{block} (out.0)"
    yield from ("transformer:norm_out", "vae:decoder.conv_in")


def recorded(path, runs=8, blocks=3, inner=INNER, variants=("baseline",), step=None, lost=None, machines=1):
    """step: {site: (run, bits)}; lost: {site: run}, the site has no value there."""
    rows = []
    for run in range(runs):
        machine = run * machines // runs
        head = (f"2026-01-{run + 1:02}T08:00:00Z", f"{run:02}{'ab' * 19}", f"machine <{machine}>", "0.32.4")
        verdict = "failed" if any(run >= since for since, _ in (step or {}).values()) else "passed"
        for variant in variants:
            for at, site in enumerate(addresses(blocks, inner)):
                since, bits = (step or {}).get(site, (runs, 0.0))
                change = bits * (run >= since)
                if (lost or {}).get(site) != run:
                    rows.append((*head, verdict, variant, site, 1.0 + at + change, 0.1 + change))
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(path, index=False)
    history = read(path)
    return history, steps(history)


STEP = {"transformer:transformer_blocks.1.attn.to_q": (4, 0.1), "transformer:transformer_blocks.2 (out.0)": (4, 0.75)}


def drawn(draw, *content):
    with style.theme():
        return draw(*content)


def words(figure):
    return {text.get_text() for axes in figure.axes for text in axes.texts}


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": 1},
        {"runs": 2, "blocks": 1, "step": {"transformer:norm_out": (1, -2.0)}},
        pytest.param({"step": STEP, "lost": {"transformer:norm_out": 5}}, marks=pytest.mark.slow),
        pytest.param(
            {"runs": 12, "step": STEP, "machines": 2, "variants": ("baseline", "a_very_long_name_of_a_variant_" * 3)},
            marks=pytest.mark.slow,
        ),
        {"blocks": 60, "runs": 5, "step": STEP},
    ],
    ids=["one run", "two runs", "a value lost", "two machines", "all blocks"],
)
def test_figures_of_any_history(tmp_path, changes):
    history, found = recorded(tmp_path / "gate.csv", **changes)
    for draw in (history_map.draw, history_lines.draw):
        drawing = drawn(draw, history, found)
        if not isinstance(drawing, style.Absent):
            with style.theme():
                png, svg = style.save(drawing, tmp_path)
            assert png.stat().st_size > 8_000
            assert svg.is_file()
    assert isinstance(drawing, style.Absent) == ("step" not in changes)


def test_the_map_has_the_changes_where_they_are(tmp_path):
    history, found = recorded(tmp_path / "gate.csv", step=STEP)
    figure = drawn(history_map.draw, history, found).figure
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    image = axes.images[0].get_array()
    assert image.shape[:2] == (len(names), 8)
    row = names.index("transformer_blocks.2 (out.0)")
    red = image[row, 4:, 0] - image[row, 4:, 2]
    assert (red > 0.2).all()
    unchanged = np.delete(image, [row, names.index("transformer_blocks.1.attn.to_q")], axis=0)
    assert np.ptp(unchanged[..., :3]) < 0.02
    bars = [segment for lines in axes.collections for segment in lines.get_segments()]
    assert {(x, round(low + 0.5)) for (x, low), _ in bars} == {
        (3.5, row),
        (3.5, names.index("transformer_blocks.1.attn.to_q")),
    }


@pytest.mark.parametrize("inner", [(), INNER], ids=["sites", "kinds"])
def test_blocks_are_numbered_where_they_are(tmp_path, inner):
    history, found = recorded(tmp_path / "gate.csv", blocks=60, runs=2, inner=inner)
    axes = drawn(history_map.draw, history, found).figure.axes[0]
    each = 4 if inner else 1
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "10", "20", "30", "40", "50", "59"]
    assert list(axes.get_yticks()) == [3 + each * block + (each - 1) / 2 for block in (0, 10, 20, 30, 40, 50, 59)]


def test_many_sites_are_rows_of_kinds_then_of_blocks(tmp_path):
    history, found = recorded(tmp_path / "a.csv", blocks=60, runs=2)
    drawing = drawn(history_map.draw, history, found)
    assert drawing.figure.axes[0].images[0].get_array().shape[0] == 60 * 4 + 5
    assert "kinds of operation of each block" in drawing.caption
    history, found = recorded(tmp_path / "b.csv", blocks=90, runs=2)
    drawing = drawn(history_map.draw, history, found)
    assert drawing.figure.axes[0].images[0].get_array().shape[0] == 90 + 5
    assert "one block each" in drawing.caption


def test_a_row_of_several_sites_shows_the_largest_change_of_either_sign(tmp_path):
    step = {
        "transformer:transformer_blocks.7.img_mlp": (1, 0.1),
        "transformer:transformer_blocks.7.txt_mlp": (1, -0.9),
    }
    history, found = recorded(tmp_path / "gate.csv", blocks=60, runs=2, step=step)
    image = drawn(history_map.draw, history, found).figure.axes[0].images[0].get_array()
    blue = image[:, 1, 2] - image[:, 1, 0]
    assert (np.abs(blue) > 0.1).sum() == 1
    assert blue.max() > 0.3


def test_the_kinds_of_operation():
    kind = history_map._block_and_kind
    assert kind("transformer_blocks.3.attn.to_out.0") == ("transformer_blocks.3", "attention")
    assert kind("transformer_blocks.3.img_mlp.net.2") == ("transformer_blocks.3", "mlp")
    assert kind("transformer_blocks.3.attn.add_q_proj") == ("transformer_blocks.3", "attention")
    assert kind("transformer_blocks.3.attn.to_add_out") == ("transformer_blocks.3", "attention")
    assert kind("transformer_blocks.3.txt_add2") == ("transformer_blocks.3", "output")
    assert kind("transformer_blocks.3") == ("transformer_blocks.3", "output")
    assert kind("transformer_blocks.3.img_mod.1") == ("transformer_blocks.3", "norm")
    assert kind("layers.2.self_attn.q_proj") == ("layers.2", "attention")
    assert kind("layers.2.mlp_add") == ("layers.2", "output")
    assert kind("norm_out") == ("norm_out", "output")
    assert kind("decoder.conv_in") == ("decoder.conv_in", "output")


def test_steps_are_named_by_commit_and_size(tmp_path):
    history, found = recorded(tmp_path / "gate.csv", step=STEP, lost={"transformer:norm_out": 6})
    said = words(drawn(history_lines.draw, history, found).figure)
    assert {"04ababa +0.75", "04ababa +0.10", "06ababa no value", "07ababa value again"} <= said


def test_lines_show_each_commit_and_no_site_twice(tmp_path):
    step = {site: (2, 0.5 + 0.01 * at) for at, site in enumerate(addresses(2)) if "blocks" in site}
    step["transformer:norm_out"] = (5, 0.2)
    _, found = recorded(tmp_path / "gate.csv", blocks=2, step=step, variants=("baseline", "other"))
    chosen = history_lines._telling(found)
    assert [key[2] for key in chosen[:2]] == ["transformer_blocks.1", "norm_out"]
    assert chosen[2][2] == "transformer_blocks.1.txt_mlp"
    assert len({key[1:4] for key in chosen}) == len(chosen) == history_lines.MOST_SITES


def test_the_page_lists_the_steps(tmp_path):
    history, found = recorded(tmp_path / "gate.csv", step=STEP)
    html = page.write(history, found, "gate", tmp_path / "out").read_text()
    assert "transformer_blocks.1.attn.to_q" in html
    assert "+0.10" in html
    assert "04ababab" in html
    assert "03ababab" in html
    assert "4 failed" in html
    assert "machine &lt;0&gt;" in html
    assert html.count("data:image/svg+xml;base64,") == 2
    assert "://" not in html.replace("http://www.w3.org", "")
    listed = pd.read_csv(tmp_path / "out" / "gate_steps.csv")
    assert list(listed["bits"]) == [0.1, 0.75]
    assert set(listed["commit"]) == {"04" + "ab" * 19}


def test_a_change_lists_the_largest_steps(tmp_path):
    step = {site: (2, -0.5 - 0.01 * at) for at, site in enumerate(addresses(4))}
    (change,) = page.changes(*recorded(tmp_path / "gate.csv", blocks=4, step=step, lost={"transformer:img_in": 2}))[-1:]
    assert change.count == len(step)
    assert [site["address"] for site in change.sites[:3]] == ["img_in", "vae:decoder.conv_in", "norm_out"]
    assert [site["step"] for site in change.sites[:2]] == ["no value", "\u22120.82"]
    assert len(change.sites) == page.MOST_SITES


def test_the_same_history_gives_the_same_bytes(tmp_path):
    content = recorded(tmp_path / "gate.csv", runs=5, step=STEP)
    first, second = (page.write(*content, "gate", tmp_path / name) for name in "ab")
    for file in sorted(first.parent.iterdir()):
        assert file.read_bytes() == (second.parent / file.name).read_bytes(), file.name


def test_a_history_without_steps_says_so(tmp_path, unrendered):
    html = page.write(*recorded(tmp_path / "gate.csv"), "gate", tmp_path).read_text()
    assert "No site has stepped by 0.02 bits" in html
    assert "No site has stepped." in html
    assert "The last run passed" in html
