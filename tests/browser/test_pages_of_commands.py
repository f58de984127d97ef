"""The pages of all commands but `run`, made by the commands: accessible, and readable without scrolling on a phone."""

from __future__ import annotations

import pytest

from precision_lab.cli import main
from tests.report.fabricated_run import fabricate
from tests.report.test_history_figure import STEP, recorded

SIZE = ("image.height=32", "image.width=32", "sampler.steps=2", "sampler.guidance_scale=1.0", "seeds=[0]")
TWO = (*SIZE, "prompts=[a,b]", "learning.prompts=[]")
LINEARS = "of=['transformer_blocks.*.attn.{to_q,to_out.0}',proj_out]"
COMMANDS = {
    "sensitivity": ("sensitivity", *SIZE, "prompts=[a]", LINEARS, "candidate=[affine4,as_stored]", "confirm=1"),
    "search": ("search", *TWO, "trials.cases=1", "holdout.seeds=[1]", "by=[operation,block]", "scan.steps=[1]",
               "confirm=0", "trials.evaluations=2", "trials.sizes=1", "optuna.baseline=false", "budget.bits=6"),
    "culprits": ("culprits", *TWO, "candidate=[affine4]", LINEARS, "criterion.drift=1e-6", "checks=1"),
    "survival": ("survival", "of=['transformer_blocks.*.attn.*']", "candidate=[affine4,int8]",
                 "claim@claims=[lora_survival]"),
    "scales": ("search", "strategy=scales", "dtype=float16", "margin.bits=1", "sampler.steps=1", *SIZE[:2],
               "pinned.cases=null", "drift.sites=[pipeline:euler_step]", "coverage.prompts=[a red circle]",
               "coverage.seeds=[0]", "holdout.prompts=[two green squares]", "holdout.seeds=[2]", "workers=1"),
}  # fmt: skip
PAGES = ("sensitivity", "search", "culprits", "survival", "scales", "history", "runs", "compared", "devices")
DEVICES = [f"results/reference/{name}/device.json" for name in ("cpu/device", "cuda/device_tf32_on")]


@pytest.fixture(scope="module", params=PAGES)
def path(request, small_checkpoint, tmp_path_factory):
    """The page of a command."""
    name, out = request.param, tmp_path_factory.mktemp(request.param) / "out"
    if name in COMMANDS:
        assert main([*COMMANDS[name], f"model.path={small_checkpoint}", f"out={out}"]) in (0, 1)
    elif name == "history":
        out.mkdir()
        recorded(out / "gate.csv", runs=9, step=STEP, machines=2, variants=("baseline", "ffn_scaling"))
        assert main(["report", f"history={out / 'gate.csv'}"]) == 0
    elif name == "devices":
        assert main(["compare", f"devices=[{','.join(DEVICES)}]", f"out={out}"]) == 0
    else:
        runs = [fabricate(out.parent / each, blocks=3, steps=2, side=32, rng_seed=at) for at, each in enumerate("ab")]
        command = ("report",) if name == "runs" else ("compare",)
        assert main([*command, f"runs=[{','.join(map(str, runs))}]", f"out={out}"]) == 0
    [found] = out.glob("*.html")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_of_a_command(page, path, theme):
    page.open(path, width=1024, theme=theme)
    assert page.axe("moderate", "serious", "critical") == []
    wide = "return [...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    assert page.js(f"{wide}.map(e => e.getAttribute('aria-label'))") == []
    page.open(path, width=420, theme=theme)
    page.js("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.js("return document.documentElement.scrollWidth") <= 420
    assert page.js(f"{wide}.map(e => e.getAttribute('aria-label'))") == []
    small = (
        "return [...document.querySelectorAll('main *')].filter(e => e.textContent.trim() && e.offsetWidth"
        " && parseFloat(getComputedStyle(e).fontSize) < 10.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert page.js(small) == []
    scrolling = page.js("return [...document.querySelectorAll('.plot')].map(e => [e.tabIndex, e.scrollWidth])")
    assert all(place == 0 and width >= 780 for place, width in scrolling)
    assert page.axe("moderate", "serious", "critical") == []
