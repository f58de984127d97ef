"""Sections that some runs have: near misses, and exponents over the blocks."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from precision_lab import report
from precision_lab.report import anomaly, headroom, rendering
from precision_lab.report.figures import exponents
from precision_lab.report.view import HEADROOM, View


def text_of(page):
    return " ".join(re.sub(r'src="data:[^"]*"|<wbr>', "", page.read_text(encoding="utf-8")).split())


def with_exponents(run, blocks=6, steps=2):
    rng = np.random.default_rng(0)
    rows = []
    for variant in ("reference", "float16"):
        for branch in ("cond", "uncond"):
            for step in range(steps):
                for block in range(blocks):
                    for port, stream in (("out.0", "img"), ("out.1", "txt")):
                        place = {
                            "variant": variant,
                            "prompt_id": 0,
                            "seed": 0,
                            "branch": branch,
                            "step": step,
                            "sigma": None,
                        }
                        place |= {"component": "transformer", "site": f"transformer_blocks.{block}", "port": port}
                        place |= {"stream": stream, "block": block, "order": len(rows), "sigma": None}
                        rows += [
                            {**place, "exponent": exponent, "count": int(rng.integers(1, 1000))}
                            for exponent in (-14, 2 * block, 2 * block + 4)
                        ]
    pd.DataFrame(rows).to_parquet(run / "exponents.parquet")
    return pd.DataFrame(rows)


def test_near_misses_of_a_run(small_run, figureless):
    run = small_run()
    frame = pd.read_parquet(run / "activations.parquet")
    chosen = (frame["variant"] == "float16") & (frame["site"] == "img_in") & (frame["step"] == 0)
    frame.loc[chosen, "amax"] = 60000.0
    frame.to_parquet(run / "activations.parquet")
    found = {table.variant: table for table in anomaly.near(View.open(run))}
    nearest = next(site for site in found["float16"].sites if site.address.startswith("img_in"))
    assert (nearest.amax, nearest.dtype, nearest.near) == (60000.0, "float16", chosen.sum())
    text = text_of(report.write(run))
    assert "Near misses" in text
    assert "within 1 bit of the overflow" in text
    assert "img_in, step 0" in text


def test_a_run_without_near_misses_has_no_such_section(small_run, figureless):
    run = small_run(variants=("reference", "baseline"), overflowing=())
    assert anomaly.near(View.open(run)) == []
    assert "Near misses" not in text_of(report.write(run))


def test_exponents_are_a_figure_where_they_were_counted(small_run, drawing_only):
    run = small_run()
    assert exponents.draw(View.open(run)) is None
    rows = with_exponents(run)
    drawing = exponents.draw(View.open(run))
    assert "in reference;" in drawing.caption
    assert "fp16 max" not in drawing.caption  # on the axis
    assert "bf16 max 2^128" in drawing.caption
    shares = exponents._shares(rows[(rows["variant"] == "reference") & (rows["port"] == "out.0")])
    assert np.allclose(shares.sum(), 1)
    assert shares.index.tolist() == list(range(-14, 15))
    drawing_only(exponents.draw)
    report.write(run)
    assert (run / "figures" / "exponents.png").stat().st_size > 10_000


def test_exponents_of_one_stream_or_another_variant(small_run):
    run = small_run(variants=("reference", "baseline"), overflowing=())
    rows = with_exponents(run, blocks=1, steps=1)
    rows["variant"] = rows["variant"].replace({"reference": "baseline"})
    rows[(rows["port"] == "out.0") & (rows["variant"] == "baseline")].to_parquet(run / "exponents.parquet")
    drawing = exponents.draw(View.open(run))
    assert "in baseline;" in drawing.caption
    rows[rows["port"] == "in"].to_parquet(run / "exponents.parquet")
    assert exponents.draw(View.open(run)) is None


@pytest.mark.parametrize("count", [8, 9])
def test_headroom_of_many_variants_is_a_row_each_and_the_rest_is_folded(small_run, count):
    first = headroom.worst(View.open(small_run()))[0]
    tables = [replace(first, variant=f"variant_{at}", sites=first.sites[at % 2 :]) for at in range(count)]
    formats = [name.removeprefix("headroom_bits_") for name in HEADROOM]
    html = rendering.templates().get_template("headroom.html").render(headroom=tables, formats=formats)
    folded = count > 8
    assert html.count("<details>") == html.count("</details>") == (count if folded else 0)
    assert html.count("<h3>") == (0 if folded else count)
    rows = re.findall(
        r'<th scope="row" class="name">(.*?)</th>\s*<td data-label="nearest site"><code>(.*?)</code>', html
    )
    rows = [(name.replace("<wbr>", ""), address.replace("<wbr>", "")) for name, address in rows]
    assert rows == ([(table.variant, table.sites[0].address) for table in tables] if folded else [])
    assert "outside of the steps" not in html
    outside = [replace(tables[0], sites=(replace(first.sites[0], step=None),)), *tables[1:]]
    html = rendering.templates().get_template("headroom.html").render(headroom=outside, formats=formats)
    assert "A dash for the step: outside of the steps." in html
