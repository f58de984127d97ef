import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from precision_lab.analysis.gate import baseline, history, junit, markdown
from precision_lab.analysis.gate.bands import Margin
from precision_lab.analysis.gate.changes import changes
from precision_lab.analysis.gate.entry import learn
from precision_lab.analysis.gate.judge import Limits, held, judge
from precision_lab.analysis.gate.violation import by_site
from precision_lab.errors import InputError
from tests.analysis.gate import fabricated_gate as fabricated
from tests.fabricated import PLAIN

HERE = ("a CPU, 2 cores", "0.32.4")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes runs in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def make(name, **given):
        return fabricated.fabricate(tmp_path / name, **given)

    return make


@pytest.fixture
def path(run):
    """A baseline learned from a run."""
    path = baseline.path_of("cpu", "small", "micro")
    baseline.write(path, "cpu", "small", fabricated.learned())
    return path


def judged(folder, path, config=fabricated.CONFIG, limits=Limits(), here=HERE):  # noqa: B008 (frozen)
    choice = baseline.choose(baseline.read(path, "cpu", "small"), *here)
    return judge(folder, config, choice, limits, str(path))


def test_the_same_run_passes_and_everything_was_compared(run, path):
    found = judged(run("again"), path)
    assert found.violations == []
    choice = baseline.choose(baseline.read(path, "cpu", "small"), *HERE)
    assert choice.match == "this device, this MLX version"
    assert set(held(choice)) == {k for k, n in found.checks.items() if n} >= {"sketches", "drift", "latency", "memory"}


def test_each_model_has_a_baseline_of_its_own(path):
    """The first that an experiment was learned from keeps the plain name."""
    (entry,) = baseline.read(path, "cpu", "small")
    first = entry["learned_from"]["checkpoint"]["name"]
    assert baseline.path_of("cpu", "small", first) == path
    other = baseline.path_of("cpu", "small", "Qwen/Other")
    assert other == path.with_name("small_Qwen--Other.json")
    assert baseline.path_of("cpu", "new", "Qwen/Other") == path.with_name("new.json")
    other.write_text(path.read_text())
    assert baseline.path_of("cpu", "small", "Qwen/Other") == other
    path.write_text("damaged")
    assert baseline.path_of("cpu", "small", first) == path


def test_the_file_is_strict_small_and_has_a_line_a_site(path):
    text = path.read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert {key: content[key] for key in ("schema_version", "experiment", "backend")} == {
        "schema_version": 2,
        "experiment": "small",
        "backend": "cpu",
    }
    (entry,) = content["entries"]
    lines = len(entry["bands"]) + len(entry["drift"]) + len(entry["sketches"])
    assert lines <= text.count("\n") <= lines + 30
    about = entry["learned_from"]
    assert (about["checkpoint"]["weights"], about["commit"], about["dirty"], about["noise_floor"]) == (
        "trained",
        "c0ffee",
        False,
        True,
    )
    assert entry["settings"]["checkpoint"]["fingerprint"] == "f1"
    assert entry["component"] == "transformer"
    named = {record["site"]: record.get("component") for record in entry["bands"]}
    assert (named["img_in"], named["decoder"]) == (None, "vae")


def test_violations_come_in_order_with_the_guilty_site_first(run, path):
    def change(case, position, x):
        return 2 * x if position["order"] >= 2 else x

    broken = fabricated.activations()
    broken.loc[broken["order"] >= 2, "amax"] *= 1000
    found = judged(run("broken", sketches=fabricated.sketches(change), activations=broken), path)
    first = by_site(found.violations)[0].first
    guilty = list(fabricated.positions())[2]
    assert (first.site, first.step, first.order) == (guilty["site"], guilty["step"], 2)
    assert first.pinned


# --- refusals: exit code 2 -------------------------------------------------------------------------------------------


def test_no_baseline(run, path):
    with pytest.raises(InputError, match=r"no baseline .*smal\.json.*Did you mean small\?.*gate\.update=true"):
        baseline.read(baseline.path_of("cpu", "smal", "micro"), "cpu", "smal")
    with pytest.raises(InputError, match="one for cpu only, and back ends are never compared"):
        baseline.read(baseline.path_of("cuda", "small", "micro"), "cuda", "small")
    with pytest.raises(InputError, match="is a baseline of backend cpu, and this run is of cuda"):
        baseline.read(path, "cuda", "small")
    with pytest.raises(InputError, match="is a baseline of experiment small"):
        baseline.read(path, "cpu", "other")


def test_no_folder_of_baselines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="change into the repository"):
        baseline.read(baseline.path_of("cpu", "small", "micro"), "cpu", "small")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not strict JSON"),
        ('{"schema_version": NaN}', "it holds NaN"),
        ("[]", "schema_version None, expected 2"),
        ('{"schema_version": 1}', "schema_version 1, expected 2.*experiments/migrations/schema_2.py"),
        ('{"schema_version": 3}', "schema_version 3, expected 2"),
        ('{"schema_version": 2, "backend": "cpu", "experiment": "small", "entries": []}', "no entries"),
        ('{"schema_version": 2, "backend": "cpu", "experiment": "small", "entries": [{}]}', "no list of entries"),
        ('{"schema_version": 2, "backend": "cpu", "experiment": "small"}', "no list of entries"),
    ],
)
def test_files_that_are_no_baseline(tmp_path, text, said):
    path = tmp_path / "small.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        baseline.read(path, "cpu", "small")


@pytest.mark.parametrize("part", ["bands", "drift", "sketches", "settings", "component"])
def test_an_entry_that_lacks_a_part(path, part):
    (entry,) = baseline.read(path, "cpu", "small")
    del entry[part]
    with pytest.raises(InputError, match=f"has no {part}"):
        baseline.choose([entry], *HERE)


MANIFEST, PINNED = fabricated.manifest(), fabricated.PINNED


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"checkpoint": replace(MANIFEST.checkpoint, fingerprint="f2")},
            'Another checkpoint is "f2" here, and "f1" in',
        ),
        (
            {"checkpoint": replace(MANIFEST.checkpoint, settings={"inflate": 4096})},
            "checkpoint.settings.inflate is 4096 here, and 1 in",
        ),
        ({"case": {**MANIFEST.case, "steps": 9}}, "case.steps is 9 here, and 2 in"),
        ({"case": {**MANIFEST.case, "height": 64}}, "case.height is 64 here, and 32"),
        (
            {"variants": {**MANIFEST.variants, "more": MANIFEST.variants["upcast"]}},
            r"variants.more.dtype is .* nothing",
        ),
        ({"pinned": replace(PINNED, sites=["**", "vae:**"])}, r'pinned.sites is "vae:\*\*" here, and nothing'),
        ({"pinned": replace(PINNED, case={"steps": 3})}, "pinned.case.steps is 3 here, and 2 in"),
        ({"pinned": None}, r"no pinned cases, and .* compares them. Run it again with pinned.record=true"),
        ({"case": {**MANIFEST.case, "negative_prompt": "ugly"}}, "case.negative_prompt"),
        ({"status": "interrupted"}, "is interrupted, expected a complete one"),
    ],
)
def test_runs_with_other_settings_are_refused(run, path, changed, said):
    with pytest.raises(InputError, match=said):
        judged(run("other", manifest=fabricated.manifest(**changed)), path)


def test_other_sites_are_refused_and_the_pattern_is_named(run, path):
    config = {**fabricated.CONFIG, "probe": {"range": {"sites": ["norm_out"]}}}
    with pytest.raises(InputError, match=r'probe.range.sites is "norm_out" here, and "\*\*" in'):
        judged(run("other"), path, config)


def test_prompts_seeds_and_the_noise_floor_may_differ(run, path):
    changed = {
        "prompts": ["c"],
        "seeds": [7],
        "pinned": replace(PINNED, noise_floor=False, fingerprint="q"),
    }
    other = run("other", manifest=fabricated.manifest(**changed), sketches=fabricated.sketches(noise=0))
    assert not judged(other, path).violations


@pytest.mark.parametrize(
    ("table", "kind"), [("activations", "ranges"), ("sketches", "sketches"), ("drift", "drift"), ("latency", "latency")]
)
def test_what_was_not_measured_does_not_pass(run, path, table, kind):
    folder = run("less", **{table: None})
    with pytest.raises(InputError, match=f"nothing to compare of {kind}"):
        judged(folder, path)


def test_a_run_of_which_only_the_reference_has_ranges_does_not_pass(run, path):
    folder = run("fewer", activations=fabricated.activations().query("variant == 'reference'"))
    with pytest.raises(InputError, match="nothing to compare of ranges"):
        judged(folder, path)


# --- other models ----------------------------------------------------------------------------------------------------


def test_a_model_with_other_components_and_without_branches(run):
    def renamed(table):
        components = {"transformer": "net", "text_encoder": "prologue", "vae": "epilogue"}
        names = table["component"].map(components)
        return table.assign(component=names, branch=table["branch"].where(table["branch"].isna(), "only"), stream="-")

    def one_branch(table):
        return renamed(table[table["branch"] != "uncond"])

    other = replace(
        PLAIN, components=("net", "prologue", "epilogue"), branches={"only": "the only one"}, before=("prologue",)
    )
    tables = {"activations": one_branch(fabricated.activations()), "drift": one_branch(fabricated.drift())}
    about = {"manifest": fabricated.manifest(layout=other)}
    learned = learn(run("learned", sketches=one_branch(fabricated.sketches()), **tables, **about), fabricated.CONFIG)
    path = baseline.path_of("cpu", "small", "micro")
    baseline.write(path, "cpu", "small", learned)
    (entry,) = baseline.read(path, "cpu", "small")
    assert entry["component"] == "net"
    assert {record["site"]: record.get("component") for record in entry["sketches"]} == {
        "norm": "prologue",
        "decoder": "epilogue",
        **dict.fromkeys(fabricated.SITES),
    }
    again = run("again", sketches=one_branch(fabricated.sketches()), **tables, **about)
    assert judged(again, path).violations == []

    doubled = fabricated.sketches(lambda case, position, x: 2 * x if position["site"] in ("norm", "img_in") else x)
    found = judged(run("broken", sketches=one_branch(doubled), **tables, **about), path).violations
    assert [v.address for v in found] == ["prologue:norm", "img_in"]


# --- which entry -----------------------------------------------------------------------------------------------------


def test_fallbacks(path):
    (entry,) = baseline.read(path, "cpu", "small")
    entries = [entry | {"device": d, "mlx": m} for d, m in (("A", "0.30.0"), ("A", "0.32.1"), ("B", "0.32.4"))]

    def chosen(device, mlx):
        choice = baseline.choose(entries, device, mlx)
        return choice.entry.device, choice.entry.mlx, choice.same_device, choice.match

    assert chosen("A", "0.32.1") == ("A", "0.32.1", True, "this device, this MLX version")
    assert chosen("A", "0.32.4") == ("A", "0.32.1", True, "this device, the nearest MLX version")
    assert chosen("A", "0.29.3") == ("A", "0.30.0", True, "this device, the nearest MLX version")
    assert chosen("C", "0.32.4") == ("B", "0.32.4", False, "another device of this back end, this MLX version")


def test_times_are_compared_on_the_same_device_only(run, path):
    slow = run("slow", latency=fabricated.latency(seconds=100.0))
    assert {v.kind for v in judged(slow, path).violations} == {"latency"}
    elsewhere = judged(slow, path, here=("another CPU", "0.32.4"))
    assert not elsewhere.violations
    assert not elsewhere.checks["latency"]


# --- variants that raised --------------------------------------------------------------------------------------------


def test_a_variant_that_raised_is_one_violation_and_the_others_are_judged(run, path):
    partial = fabricated.activations()
    partial = partial[(partial["variant"] != "upcast") | (partial["order"] < 3)]
    folder = run("failed", manifest=fabricated.manifest(errors={"upcast": "ValueError: x"}), activations=partial)
    (violation,) = judged(folder, path).violations
    assert (violation.metric, violation.variant, violation.got) == ("raised", "upcast", "ValueError: x")
    with pytest.raises(InputError, match="upcast failed"):
        learn(folder, fabricated.CONFIG)


# --- learning --------------------------------------------------------------------------------------------------------


def test_an_update_names_sites_that_are_newly_not_finite(run, path):
    before = baseline.choose(baseline.read(path, "cpu", "small"), *HERE).entry
    lost = fabricated.activations()
    bad = (lost["site"] == "proj_out") & (lost["variant"] == "upcast") & (lost["seed"] == 1)
    lost.loc[bad, "num_inf"], lost.loc[bad, "amax"] = 37, np.nan
    after = learn(run("lost", activations=lost), fabricated.CONFIG)
    (line,) = [line for line in changes(before, after) if "non-finite" in line]
    assert line == "non-finite values: 1 sites have them newly, the first: upcast proj_out 37 values"
    (line,) = [line for line in changes(after, before) if "non-finite" in line]
    assert line == "non-finite values: 1 sites have them no longer, the first: upcast proj_out 37 values"


def test_an_update_replaces_its_own_entry_and_keeps_others(run, path):
    (entry,) = baseline.read(path, "cpu", "small")
    moved = fabricated.activations()
    moved.loc[(moved["site"] == "img_in") & (moved["variant"] == "upcast"), "amax"] *= 2**3
    moved.loc[moved["site"] == "norm", "dtype"] = "float32"
    moved = moved[moved["site"] != "decoder"]
    folder = run(
        "moved",
        activations=moved,
        sketches=fabricated.sketches(lambda case, p, x: x * 2 if p["site"] == "proj_out" else x),
    )
    assert judged(folder, path).violations
    after = learn(folder, fabricated.CONFIG)
    baseline.write(path, "cpu", "small", after)
    assert len(baseline.read(path, "cpu", "small")) == 1
    assert not judged(folder, path, limits=Limits(ranges=Margin(0.01, 0))).violations

    before = baseline.choose([entry], *HERE).entry
    lines = "\n".join(changes(before, after))
    assert "bands: 2 sites gone: baseline vae:decoder" in lines
    assert "dtype: 2 sites: baseline text_encoder:norm bfloat16 -> float32" in lines
    assert "log2_amax: 1 bands moved by up to 3.00 bits: upcast img_in" in lines
    assert "pinned cases: 1 sites moved, in order of execution: reference proj_out by 1" in lines
    assert changes(after, baseline.choose(baseline.read(path, "cpu", "small"), *HERE).entry) == []

    environment = replace(MANIFEST.environment, mlx="0.33.0")
    newer = run("newer", manifest=fabricated.manifest(environment=environment))
    baseline.write(path, "cpu", "small", learn(newer, fabricated.CONFIG))
    assert [e["mlx"] for e in baseline.read(path, "cpu", "small")] == ["0.32.4", "0.33.0"]


def test_the_same_run_learned_twice_is_the_same_file(run, path):
    before = path.read_bytes()
    baseline.write(path, "cpu", "small", learn(run("again"), fabricated.CONFIG))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("variant", "expect", "refused"), [("upcast", "finite", True), ("upcast", "any", False), ("reference", "any", True)]
)
def test_nothing_is_learned_from_nan_where_values_are_finite(run, variant, expect, refused):
    table = fabricated.activations()
    table.loc[(table["variant"] == variant) & (table["order"] == 4), ["num_nan", "amax"]] = [1, np.nan]
    variants = {**MANIFEST.variants, "upcast": replace(MANIFEST.variants["upcast"], expect=expect)}
    folder = run("nan", activations=table, manifest=fabricated.manifest(variants=variants))
    if refused:
        with pytest.raises(InputError, match=f"{variant} is not finite at img_in"):
            learn(folder, fabricated.CONFIG)
    else:
        assert learn(folder, fabricated.CONFIG).bands["num_nonfinite_max"].max() == 1


def test_nothing_is_learned_from_a_run_without_ranges(run):
    reference = fabricated.activations().query("variant == 'reference'")
    with pytest.raises(InputError, match="recorded no ranges"):
        learn(run("none", activations=reference), fabricated.CONFIG)


def test_a_file_of_another_experiment_is_not_overwritten(run, path):
    entry = learn(run("again"), fabricated.CONFIG)
    before = path.read_bytes()
    with pytest.raises(InputError):
        baseline.write(path, "cpu", "another", entry)
    assert path.read_bytes() == before


# --- what people and CI services read --------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [True, False])
def test_junit_parses_and_its_counts_agree(run, path, broken):
    table = fabricated.activations()
    if broken:
        table.loc[table["site"] == "img_in", "amax"] *= 1e4
        table.loc[table["site"] == "norm", "dtype"] = "<&\x00>"
    found = judged(run("one", activations=table), path)
    text = junit.document("small", found, ["text_encoder", "transformer", "vae"])
    root = ElementTree.fromstring(text)
    (suite,) = root
    failures = suite.findall("testcase/failure")
    assert len(suite.findall("testcase")) == int(suite.get("tests")) == int(root.get("tests")) > 10
    assert len(failures) == int(suite.get("failures")) == int(root.get("failures")) == (3 if broken else 0)
    names = {(case.get("classname"), case.get("name")) for case in suite.findall("testcase[failure]")}
    if broken:
        assert names == {(f"gate.small.{kind}", "transformer") for kind in ("ranges", "headroom")} | {
            ("gate.small.dtypes", "text_encoder")
        }
        assert any("img_in" in failure.text for failure in failures)


def test_the_page_says_what_was_compared_and_with_what(run, path):
    table = fabricated.activations()
    table.loc[table["site"] == "img_in", "amax"] *= 1e4
    found = judged(run("one", activations=table), path)
    record = {"experiment": "small", "backend": "cpu", "passed": False, "checks": dict(found.checks)}
    record["baseline"] = {"device": "a CPU, 2 cores", "mlx": "0.32.4", "match": "this device"}
    page = markdown.page(record, found.violations)
    assert page.startswith("## Gate small on cpu: failed")
    assert f"{found.checks['ranges']} ranges" in page
    assert "| img_in | baseline, upcast | step 0 cond, prompt 0, seed 0 | log2_amax |" in page


def test_history_grows_by_whole_runs(run, path, tmp_path):
    choice = baseline.choose(baseline.read(path, "cpu", "small"), *HERE)
    now = choice.entry.bands.assign(log2_amax_max=choice.entry.bands["log2_amax_max"] + 1)
    rows = history.rows(MANIFEST, "passed", now, choice.entry.bands, ["transformer_blocks.*", "vae:**"])
    assert {(r["variant"], r["site"]) for r in rows} == {
        (v, s) for v in fabricated.VARIANTS for s in ("transformer:transformer_blocks.0", "vae:decoder")
    }
    band = choice.entry.bands.query("variant == 'upcast' and site == 'decoder'").iloc[0]
    (row,) = [r for r in rows if (r["variant"], r["site"]) == ("upcast", "vae:decoder")]
    half = (band["log2_amax_max"] - band["log2_amax_min"]) / 2
    assert row["deviation_bits"] == pytest.approx(1 + half, abs=1e-3)
    log = tmp_path / "history.csv"
    history.append(log, rows)
    history.append(log, rows)
    lines = log.read_text().splitlines()
    assert lines[0] == ",".join(history.COLUMNS)
    assert len(lines) == 1 + 2 * len(rows)
    log.write_text("something,else\n1,2\n")
    with pytest.raises(InputError, match=r"gate\.history=null"):
        history.append(log, rows)
    assert log.read_text() == "something,else\n1,2\n"
