"""`report history=FILE`, in this process."""

from pathlib import Path

import pytest

from precision_lab.analysis.gate.history import COLUMNS
from precision_lab.cli import main


def recorded(folder: Path, step: float = 0.5) -> Path:
    rows = [",".join(COLUMNS)]
    for day in range(1, 5):
        for at, site in enumerate(("transformer:img_in", "transformer:transformer_blocks.0 (out.0)")):
            change = step * (day > 2) * at
            rows.append(
                f"2026-01-{day:02}T08:00:00Z,{day}{'f' * 39},cpu,0.32.4,passed,baseline,{site},{2 + change},{change}"
            )
    path = folder / "gate.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_draws_beside_the_file(tmp_path, capsys):
    path = recorded(tmp_path)
    assert main(["report", f"history={path}"]) == 0
    said = capsys.readouterr().out
    assert "3fffffff" in said
    assert "transformer_blocks.0 (out.0)" in said
    assert "+0.50" in said
    assert said.rstrip().endswith(f"report: {tmp_path / 'gate.html'}")
    names = {file.name for file in tmp_path.iterdir()}
    figures = {f"gate_{name}.{kind}" for name in ("ranges", "steps") for kind in ("png", "svg")}
    assert names == {"gate.csv", "gate.html", "gate_steps.csv"} | figures


def test_in_markdown_nothing_is_drawn(tmp_path, capsys):
    assert main(["report", f"history={recorded(tmp_path)}", "format=md"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("## Gate history gate: 4 runs, the last passed\n")
    assert "| 3fffffff" in out
    assert out == (tmp_path / "gate.md").read_text()
    assert {file.name for file in tmp_path.iterdir()} == {"gate.csv", "gate.md"}


def test_draws_into_out(tmp_path, capsys):
    (tmp_path / "from").mkdir()
    path = recorded(tmp_path / "from", step=0.0)
    assert main(["report", f"history={path}", f"out={tmp_path / 'a' / 'b'}"]) == 0
    assert "No steps in 4 gate runs" in capsys.readouterr().out
    assert (tmp_path / "a" / "b" / "gate.html").is_file()
    assert [file.name for file in path.parent.iterdir()] == ["gate.csv"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "run=DIR, the folder of a run, runs=DIR, a folder of runs, sweep=DIR"),
        (["run={}", "history={}/gate.csv"], "one of them"),
        (["run={}", "out={}"], "out= belongs to runs= and history=FILE"),
        (["history={}"], "is a folder"),
        (["history={}/none.csv"], "no such file"),
        (["history={}/other.csv"], "has the columns a,b"),
        (["history={}/gate.csv", "out={}/other.csv"], "is a file, expected a folder"),
        (["history={}/gate.csv", "out=[a]"], "expected a folder"),
        (["histroy={}/gate.csv"], "histroy"),
    ],
)
def test_mistakes(tmp_path, capsys, arguments, said):
    recorded(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert main(["report", *(argument.format(tmp_path) for argument in arguments)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(message.strip().splitlines()) <= 2
    assert "Traceback" not in message
