"""Pages about runs, read by `html.parser`; records, read beside their files."""

from __future__ import annotations

import csv
import datetime
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optax
import pytest
from boring_modules import High, regression

import elegy as eg
from elegy.html.chart import Line, chart
from elegy.runs.record import RunRecord

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """The text, the tags, what is loaded, and the points of the charts by title."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.loaded, self.text, self.open, self.lines = [], [], "", [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.loaded += [v for k, v in values.items() if k in ("src", "href") and not v.startswith("data:")]
        if tag not in ("meta", "link", "polyline", "circle", "line"):
            self.open.append(tag)
        if "data-lines" in values:
            self.data = json.loads(values["data-lines"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "figcaption":
            self.lines[data.removesuffix(" (log scale)")] = {
                one["name"]: [point[:2] for point in one["points"]] for one in self.data
            }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run of three epochs, with an evaluation and a step value in each."""
    path = tmp_path_factory.mktemp("runs") / EVIL.replace("/", "")
    trainer = eg.Trainer(
        High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), run_dir=path, config={"note": EVIL}
    )
    keep = eg.callbacks.ModelCheckpoint(monitor="val_loss")
    x, y = regression(60)
    trainer.fit(x, y, batch_size=1, epochs=3, validation_split=0.1, callbacks=[keep], verbose=0)
    return path


def test_a_report_shows_what_the_files_hold(folder, tmp_path):
    path = eg.runs.report(folder, tmp_path / "deep" / "report.html")
    page = Page(path.read_text())
    assert page.open == []
    assert page.loaded == []
    assert page.tags.count("script") == 1
    assert "http" not in path.read_text()
    with (folder / "log.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    drawn = page.lines["loss"]
    assert drawn["train (epoch)"] == [[int(row["step"]), float(row["loss"])] for row in table]
    assert drawn["val"] == [[int(row["step"]), float(row["val_loss"])] for row in table]
    best = min(table, key=lambda row: float(row["val_loss"]))
    assert f"step_{int(best['step']):08d} (val_loss {float(best['val_loss']):.5g})" in page.text
    assert EVIL in page.text.replace("\\", "")  # as text, of the configuration
    for part in ("compile", "evaluation", "saving", "float32[3,2]", "examples per second", "jaxlib"):
        assert part in page.text
    assert "prefers-color-scheme:dark" in path.read_text()


def test_the_parts_of_the_time_add_up(folder):
    record = eg.runs.read(folder)
    run = json.loads((folder / "run.json").read_text())
    assert record.seconds == pytest.approx(sum(run["fits"][0]["seconds"].values()))
    assert set(run["fits"][0]["seconds"]) == {"compile", "data", "steps", "evaluation", "saving", "callbacks", "other"}
    began, ended = (datetime.datetime.fromisoformat(run["fits"][0][name]) for name in ("started", "ended"))
    assert (ended - began).total_seconds() >= record.seconds - 0.01  # of the whole call, compilation included


def test_step_values_are_in_the_record(folder):
    steps, values = eg.runs.read(folder).series("step")["loss"]
    assert steps == [50, 100, 150]
    assert np.isfinite(values).all()


def test_runs_are_listed_and_compared(folder, tmp_path):
    other = RunRecord(
        "other",
        None,
        "failed",
        8,
        2,
        ({"type": "epoch", "step": 8, "epoch": 0, "values": {"val_loss": float("nan"), "val_f1": 0.5}},),
        config={"config": {"note": "none"}},
    )
    found = eg.runs.find(folder.parent)
    assert [run.path for run in found] == [folder]
    lines = eg.runs.listing([*found, other]).splitlines()
    best = min(found[0].series()["val_loss"][1])
    assert lines[0].split()[-2:] == ["val_mean_squared_error", "val_f1"]
    assert lines[1].split()[-2] == f"{best:.5g}"
    assert lines[2].split() == ["other", "failed", "2", "8", "0.5"]
    page = Page(eg.runs.compare([*found, other], tmp_path / "compare.html").read_text())
    assert page.tags.count("script") == 1
    assert set(page.lines["loss"]) == {folder.name}
    assert "config.note" in page.text
    with pytest.raises(ValueError, match="no run to compare"):
        eg.runs.compare([], tmp_path / "none.html")
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        eg.runs.read(tmp_path)


def test_a_run_has_one_colour_in_all_charts_of_a_comparison(tmp_path):
    def record(name, *logged):
        values = [{"type": "epoch", "step": k, "epoch": k, "values": dict.fromkeys(logged, k)} for k in (1, 2)]
        return RunRecord(name, None, "finished", 2, 2, tuple(values))

    records = [record("first", "loss"), record("second", "loss", "val_loss"), record("third", "val_loss", "loss")]
    text = eg.runs.compare(records, tmp_path / "c.html").read_text()
    colours = re.findall(r'<span class="key (c\d)">(\w+)</span>', text)
    assert sorted(set(colours)) == [("c0", "first"), ("c1", "second"), ("c2", "third")]
    assert len(colours) == text.count("<polyline") == 5
    assert sorted(re.findall(r'<polyline class="line (c\d)"', text)) == ["c0", "c1", "c1", "c2", "c2"]


def test_values_that_are_not_finite_are_gaps_and_a_problem(tmp_path):
    values = [1.0, 0.5, float("nan"), 0.25, float("inf")]
    records = [{"type": "epoch", "step": k, "epoch": k, "values": {"loss": v}} for k, v in enumerate(values, 1)]
    record = RunRecord("r", None, "failed", 5, 5, tuple(records), fits=({"error": f"ValueError: {EVIL}"},))
    page = Page(eg.runs.report(record, tmp_path / "r.html").read_text())
    assert page.lines["loss"]["train (epoch)"] == [[1, 1.0], [2, 0.5], [4, 0.25]]
    assert "loss was not finite in 2 records, first at step 3" in page.text
    assert f"ValueError: {EVIL}" in page.text
    assert record.best == {"loss": (0.25, 4)}


def test_only_losses_and_metrics_have_a_best_value(tmp_path):
    monitors = [
        eg.callbacks.LearningRateMonitor(schedule=lambda step: 0.1 / (step + 1)),
        eg.callbacks.GradientMonitor(per_layer=True),
        eg.callbacks.ThroughputMonitor(every=eg.Every(steps=2)),
        eg.callbacks.DeviceMonitor(every=eg.Every(steps=2)),
        eg.callbacks.TimeMonitor(),
    ]
    x, y = regression()
    made = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), run_dir=tmp_path / "run")
    made.fit(x, y, batch_size=8, epochs=2, callbacks=monitors, verbose=0)
    record = eg.runs.read(tmp_path / "run")
    assert {"learning_rate", "grad_norm", "steps_per_second", "host_memory"} < record.series().keys()
    assert record.best.keys() == {"loss", "mean_squared_error"}


def test_lines_of_a_log_that_are_not_records_are_left_out(tmp_path):
    (tmp_path / "run.json").write_text("[1]")
    right = '{"type": "epoch", "step": 3, "epoch": 0, "values": {"loss": 1.0, "note": "high", "missing": null}}'
    (tmp_path / "log.jsonl").write_text('{"type": "epoch", "step": 1}\n{"type": "epoch", "values": {}}\n' + right)
    record = eg.runs.read(tmp_path)
    assert record.series() == {"loss": ([3], [1.0])}
    assert Page(eg.runs.report(record, tmp_path / "r.html").read_text()).lines["loss"] == {"train (epoch)": [[3, 1.0]]}


@pytest.mark.parametrize("value", [3, "text", None, ["text"], [3], 2.5])
def test_a_run_json_of_another_program_does_not_hide_the_runs(folder, tmp_path, value):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    names = ("status", "step", "epoch", "fits", "checkpoints", "started", "name")
    (foreign / "run.json").write_text(json.dumps(dict.fromkeys(names, value)))
    (foreign / "model.json").write_text(json.dumps({"parameters": value}))
    (tmp_path / "run").symlink_to(folder)
    records = [*eg.runs.find(tmp_path), eg.runs.read(tmp_path / "run")]
    assert len(eg.runs.listing(records).splitlines()) == 3
    assert "foreign" in Page(eg.runs.report(foreign, tmp_path / "r.html").read_text()).text
    assert "foreign" in Page(eg.runs.compare(records, tmp_path / "c.html").read_text()).text


def test_a_trainer_without_a_folder_reports_its_history(tmp_path):
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    x, y = regression()
    history = trainer.fit(x, y, batch_size=8, epochs=4, validation_split=0.2, validation_freq=2, verbose=0)
    page = Page(trainer.report(tmp_path / "r.html").read_text())
    drawn = page.lines["loss"]
    assert drawn["train (epoch)"] == [[3 * k, v] for k, v in enumerate(history.history["loss"], 1)]
    assert drawn["val"] == [[6, history.history["val_loss"][0]], [12, history.history["val_loss"][1]]]


def test_a_long_line_keeps_its_extremes():
    values = np.random.default_rng(0).normal(size=50_000)
    values[[1234, 40_321]] = 50, -50
    page = Page(chart("long", [Line("a", range(50_000), list(values))]))
    drawn = page.lines["long"]["a"]
    assert len(drawn) <= 1000
    assert [1234, 50.0] in drawn
    assert [40_321, -50.0] in drawn


@pytest.mark.parametrize(("values", "expected"), [([1, 1000], True), ([1, 50], False), ([-1, 1000], False)])
def test_the_axis_is_logarithmic_over_two_decades(values, expected):
    assert ("(log scale)" in chart("x", [Line("a", [1, 2], values)])) is expected


@pytest.mark.parametrize(
    "values", [[0.5], [0.5, 0.5], [0.0, 0.0], [1e30, -1e30], [1.7e308, -1.7e308, 1.0], [5e-324, 1e-323], []]
)
def test_a_chart_of_any_values_has_numbers_for_coordinates(values):
    text = chart("x", [Line("a", list(range(len(values))), values)])
    assert not re.search(r"\b(nan|inf)\b", text)
    assert Path("x").name in text
