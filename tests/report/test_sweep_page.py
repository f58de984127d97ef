"""The index page of a sweep of fabricated runs, and its plot of drift against cost."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from matplotlib.colors import to_hex

from precision_lab.errors import InputError
from precision_lab.record import sweep as record
from precision_lab.record.collection import of_job
from precision_lab.record.manifest import Manifest, Storage
from precision_lab.record.summary import Quantity, Summary
from precision_lab.record.sweep import JobError
from precision_lab.report import index, wording
from precision_lab.report.figures import pareto, style
from precision_lab.report.figures.pareto import Point
from precision_lab.report.figures.style import Absent
from tests.report.test_page import Resources, edit, edit_variants, text_of

SPEED = {
    "cheap": (2e-2, 0.01, 400),
    "exact": (0.0, 0.05, 1600),
    "middle": (3e-3, 0.02, 1600),
    "worse": (3e-2, 0.03, 400),
}


def points(**changed) -> list[Point]:
    rows = SPEED | changed
    return [Point(number, name, *values) for number, (name, values) in enumerate(rows.items(), 1)]


def cells(page: Path, table: str = "variants") -> list[list[str]]:
    """The text of each row of a table."""
    body = (
        page.read_text(encoding="utf-8")
        .partition(f'<section id="{table}">')[2]
        .partition("<tbody>")[2]
        .partition("</tbody>")[0]
    )
    rows = [re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row, flags=re.DOTALL) for row in body.split("</tr>")[:-1]]
    return [[" ".join(re.sub(r"<.*?>", " ", cell).split()) for cell in row] for row in rows]


@pytest.fixture
def folder(small_run, tmp_path) -> Path:
    """A sweep of three jobs: complete, refused, interrupted."""
    for number, dtype in ((0, "bfloat16"), (2, "float16")):
        run = small_run(f"sweep/{number}", variants=("reference", "baseline", "ffn_scaling"), overflowing=())
        edit(run, command=["python", "-m", "precision_lab", "run", "+exp=plain", f"dtype={dtype}", f"out={run}"])
    (tmp_path / "sweep" / "0" / "report.html").touch()
    edit(tmp_path / "sweep" / "2", status="interrupted", finished=None)
    JobError(2, "dtype is <bf17>", ["+exp=plain", "dtype=bf17"]).write(tmp_path / "sweep" / "1")
    return tmp_path / "sweep"


def write(folder: Path) -> Path:
    jobs = record.read(folder, {})
    differing = record.differing([job.overrides for job in jobs])
    return index.write([of_job(job, swept) for job, swept in zip(jobs, differing, strict=True)], folder)[0]


def test_the_page_lists_every_job_and_is_self_contained(folder):
    page = write(folder)
    assert page == folder / "index.html"
    parsed = Resources(page.read_text(encoding="utf-8"))
    assert not parsed.open
    assert all(source.startswith("data:image/svg+xml") and len(source) > 1000 for source in parsed.sources)
    assert len(parsed.sources) == 1
    assert not parsed.tags & {"link", "iframe", "object"}
    assert {path.name for path in (folder / "figures").iterdir()} == {"pareto.png", "pareto.svg"}
    rows = cells(page)
    assert [row[0] for row in rows[:3]] == ["0 dtype=bfloat16", "0 dtype=bfloat16", "2 dtype=float16"]
    assert [row[1] for row in rows[:2]] == ["1 baseline ●", "2 ffn_ scaling ● ffn_scaling"]
    jobs = cells(page, "runs")
    assert [row[0] for row in jobs] == ["0 dtype=bfloat16", "1 dtype=bf17", "2 dtype=float16 no report.html"]
    assert jobs[1][5] == "failed exit code 2: dtype is &lt;bf17&gt;"
    assert jobs[2][5].startswith("interrupted this run was not finished")
    text = text_of(page)
    assert "2 of 3 jobs have left no complete run: jobs 1, 2" in text
    assert "prefers-color-scheme: dark" in text


def test_the_numbers_are_those_of_the_summaries(folder):
    edit_variants(folder / "0", baseline={"latent_rel_l2": Quantity(0.0123), "psnr_db": Quantity(None, "identical")})
    entry = Summary.read(folder / "0").variants["ffn_scaling"]
    first, second, *_ = cells(write(folder))
    assert first[1].startswith("1 baseline")
    assert first[3:5] == ["0.0123", "— identical"]
    values = (entry.latent_rel_l2, entry.psnr_db, entry.ssim, entry.num_nonfinite)
    second = second[1:]
    assert second[2:4] == [wording.number(quantity.value) for quantity in values[:2]]
    assert second[4] == wording.fixed(entry.ssim.value, 4)
    assert second[5] == wording.number(entry.num_nonfinite.value)
    assert second[6] == wording.number(entry.latency.median_s)
    low, high = entry.latency.ci95
    assert second[7] == f"{entry.latency.ratio:.3f} [{low:.3f}, {high:.3f}] {entry.latency.verdict}"


def test_links_lead_to_reports_that_exist(folder):
    (target,) = re.findall(r'<a href="([^"]+)">', write(folder).read_text(encoding="utf-8"))
    assert target == "0/report.html"
    assert (folder / unquote(target)).is_file()


def test_a_link_to_a_run_elsewhere_is_relative_and_quoted(folder, small_run):
    run = small_run("else where#1")
    (run / "report.html").touch()
    jobs = record.read(folder, {}, {"else where#1": run})
    page, _ = index.write([of_job(job, {}) for job in jobs], folder)
    targets = re.findall(r'<a href="([^"]+)">', page.read_text(encoding="utf-8"))
    assert "../else%20where%231/report.html" in targets
    assert all((folder / unquote(target)).is_file() for target in targets)


def test_the_same_files_give_the_same_bytes(folder):
    page = write(folder)
    files = [page, *sorted((folder / "figures").iterdir())]
    before = [file.read_bytes() for file in files]
    write(folder)
    assert [file.read_bytes() for file in files] == before


def test_a_run_that_was_not_judged_has_no_numbers(folder):
    (folder / "2" / "summary.json").unlink()
    edit(folder / "2", status="complete", finished="2026-03-02T09:51:40Z")
    page = write(folder)
    assert [row[0] for row in cells(page)] == ["0 dtype=bfloat16"] * 2
    assert f"no summary.json: report run={folder / '2'} judges the run" in cells(page, "runs")[2][5]


def test_what_weights_take_is_a_column_and_a_plot(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(index.pareto, "draw", lambda points, result, time: drawn.extend(points) or Absent("a", "b"))
    assert "bits a weight" not in text_of(write(folder))
    for job, size in (("0", 2048), ("2", 576)):
        variants = dict(Manifest.read(folder / job).variants)
        stored = {"transformer": Storage(1024, size, size / 128)}
        variants["baseline"] = replace(variants["baseline"], linear_weights=stored)
        edit(folder / job, variants=variants)
    drawn.clear()
    page = write(folder)
    assert "bits a weight" in text_of(page)
    assert [row[-9 if len(row) > 9 else 2] for row in cells(page) if "baseline" in row[0] + row[1]]
    assert "4.50 576 B" in text_of(page).replace('<small class="whole">', " ").replace("</small>", "")
    assert [point.weight_bytes for point in drawn] == [2048, None, 576, None]


def test_claims_are_counted_at_their_subjects(folder):
    summary = Summary.read(folder / "0")
    verdicts = ("refuted", "supported", "supported")
    claims = [
        replace(summary.claims[0], id=f"C{at}", subject="baseline", verdict=verdict)
        for at, verdict in enumerate(verdicts)
    ]
    replace(summary, claims=[*claims, replace(claims[0], id="C3", subject="ffn_scaling")]).write(folder / "0")
    rows = cells(write(folder))
    assert rows[0][-1] == "2 supported C1, C2 1 refuted C0"
    assert rows[1][-1] == "1 refuted C3"


@pytest.mark.parametrize("overlap", [True, False])
def test_times_of_jobs_that_ran_at_once_are_marked(folder, overlap):
    edit(folder / "0", started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:10:00+00:00")
    hour = "00" if overlap else "01"
    edit(
        folder / "2",
        status="complete",
        started=f"2026-01-01T{hour}:05:00+00:00",
        finished=f"2026-01-01T{hour}:20:00+00:00",
    )
    assert ("2 jobs ran while another did" in text_of(write(folder))) == overlap


def test_a_damaged_summary_is_named_and_nothing_is_written(folder):
    (folder / "2" / "summary.json").write_text("{")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError, match=r"2/summary\.json is not strict JSON"):
        write(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_fronts_of_both_costs():
    assert pareto.fronts(points()) == {
        "median time of a step in s": [1, 2, 3],
        "weights with their scales in KiB": [1, 2],
    }


def test_only_costs_in_which_the_points_differ_are_drawn():
    same = [replace(point, weight_bytes=400) for point in points()]
    assert list(pareto.fronts(same)) == ["median time of a step in s"]
    untimed = [replace(point, seconds=None) for point in points()]
    assert list(pareto.fronts(untimed)) == ["weights with their scales in KiB"]
    assert pareto.fronts([replace(point, seconds=None) for point in same]) == {}
    assert isinstance(pareto.draw(points()[:1], "latents"), Absent)


def test_points_on_the_front_are_filled_and_all_are_numbered():
    broken = points(broken=(float("nan"), 0.001, 400), unknown=(None, 0.001, 400))
    with style.theme():
        drawing = pareto.draw(broken, "latents")
    assert "not drawn: 5, 6" in drawing.caption
    time, weights = drawing.figure.axes
    marks = [line for line in time.lines if line.get_marker() in ("o", "v")]
    filled = [to_hex(mark.get_color()) != "#ffffff" for mark in marks]
    assert filled == [True, True, True, False]
    assert marks[1].get_marker() == "v", "a zero has no place on a log axis"
    (low, _), bottom = time.get_ylim(), marks[1].get_ydata()[0]
    assert bottom == pytest.approx(low)
    assert time.get_yscale() == "log"
    assert {text.get_text() for text in time.texts} == {"1", "2", "3", "4"}
    assert len([line for line in weights.lines if line.get_marker() in ("o", "v")]) == 4


def test_points_at_one_place_share_a_label():
    with style.theme():
        drawing = pareto.draw([Point(n, "v", 0.1, 0.2, None) for n in range(1, 8)], "logits")
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == ["1, 2, 3, 4, …"]


def test_many_variants_have_one_colour(tmp_path):
    crowd = [Point(n, f"variant_{n}", 10.0**-n, 0.1 * n, 100 * n) for n in range(1, 12)]
    with style.theme():
        drawing = pareto.draw(crowd, "latents")
        style.save(drawing, tmp_path)
    assert not drawing.figure.legends
    assert json.dumps(pareto.fronts(crowd)).count("11") == 2
