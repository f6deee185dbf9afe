"""`elegy runs`, `elegy compare` and `elegy report` read what is in folders, without a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import call


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, losses in [("a", [0.5, 0.25]), ("b", [0.75, 0.125])]:
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        run = {
            "name": name,
            "status": "finished",
            "step": 20,
            "epoch": 2,
            "started": f"2026-01-0{len(name)}T00:00:00+00:00",
        }
        (folder / "run.json").write_text(json.dumps(run))
        lines = [
            {"type": "epoch", "step": 10 * k, "epoch": k, "values": {"val_loss": v}} for k, v in enumerate(losses, 1)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"type": "epo')


def test_runs_are_listed(folders, capsys):
    call("runs", "runs")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["run", "status", "epochs", "steps", "val_loss"],
        ["runs/a", "finished", "2", "20", "0.25"],
        ["runs/b", "finished", "2", "20", "0.125"],
    ]


def test_runs_are_compared_and_reported(folders, capsys):
    call("compare", "runs/a", "runs/b", "--output", "both.html")
    call("report", "runs/b")
    assert capsys.readouterr().out.splitlines()[-2:] == ["wrote both.html", "wrote report.html"]
    assert Path("both.html").read_text().count("<polyline") == 2
    assert "0.125" in Path("report.html").read_text()


def test_compare_prints_the_settings_that_differ(folders, capsys):
    for name, rate in (("a", 0.25), ("b", 0.125)):
        config = {"trainer": {"seed": 42}, "config": {"optimizer": {"rate": rate}}}
        (Path("runs") / name / "config.json").write_text(json.dumps(config))
    call("compare", "runs/a", "runs/b")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["setting", "a", "b"] in lines
    assert ["config.optimizer.rate", "0.25", "0.125"] in lines
    assert not any("trainer.seed" in line for line in lines)


def test_compare_shows_the_settings_that_changed_when_a_run_was_resumed(folders, capsys):
    rates = [("a", "_1", 0.5), ("a", "_2", 0.25), ("a", "", 0.5), ("b", "", 0.5)]
    for name, number, rate in rates:
        config = {"trainer": {"seed": 42}, "config": {"rate": rate, "same": 1}}
        (Path("runs") / name / f"config{number}.json").write_text(json.dumps(config))
    call("compare", "runs/a", "runs/b", "--output", "both.html")
    lines = capsys.readouterr().out.splitlines()
    assert "config.rate  0.5 -> 0.25 -> 0.5  0.5" in lines
    assert not any("same" in line for line in lines)
    call("report", "runs/a")
    assert "0.5 -&gt; 0.25 -&gt; 0.5" in Path("report.html").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("runs nowhere", "nowhere is not a directory"),
        ("compare runs/a runs/c", "runs/c is not the folder of a run"),
        ("report .", "is not the folder of a run"),
        ("report", "the following arguments are required: run"),
        ("reprot runs/a", "Did you mean 'report'?"),
    ],
)
def test_what_is_not_there_is_said(folders, capsys, line, message):
    with pytest.raises(SystemExit) as ended:
        call(*line.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
