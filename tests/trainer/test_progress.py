"""What a run prints."""

import contextlib
import fcntl
import io
import itertools
import os
import pty
import re
import struct
import sys
import termios
from types import SimpleNamespace

import flax.linen as nn
import numpy as np
import optax
import pytest
import tqdm.auto  # before any test pretends to run in a notebook

import elegy as eg
from elegy.callbacks import CallbackList, Event, LazyLogs
from elegy.trainer import progress
from elegy.trainer.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    # Not sys.stderr itself, which pytest sets anew before the test's body.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream, modules=sys.modules))
    return stream


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves a tenth of a second whenever it is looked at."""
    now = [0.0]

    def perf_counter():
        now[0] += 0.1
        return now[0]

    monkeypatch.setattr(progress.time, "perf_counter", perf_counter)
    return now


def fit(bar, *, epochs=2, steps=6, known=True, total=2, reads=None):
    callbacks = CallbackList([bar])

    def emit(hook, **fields):
        if callbacks.listens(hook):
            callbacks.emit(
                hook,
                Event(
                    **{"trainer": None, "phase": "train", "epochs": total, "steps": steps if known else None, **fields}
                ),
            )

    def logs(step):
        def fetch():
            if reads is not None:
                reads.append(step)
            return {"loss": 1 / step}

        return LazyLogs(fetch)

    step = 0
    emit("on_train_begin", step=0, epoch=0)
    for epoch in range(epochs):
        emit("on_epoch_begin", step=step, epoch=epoch)
        for batch in range(steps):
            step += 1
            emit("on_train_batch_end", step=step, epoch=epoch, batch=batch, logs=logs(step))
        for hook in ("on_test_begin", "on_test_batch_end", "on_test_end"):
            emit(hook, phase="test", step=step, epoch=epoch, batch=0, logs={"loss": 7.0})
        emit("on_epoch_end", step=step, epoch=epoch, logs={"loss": 0.123456, "val_loss": 12345.678})
    emit("on_train_end", step=step, epoch=epochs - 1)


@pytest.mark.parametrize("verbose", [1, 2])
def test_a_plain_line_per_epoch_without_a_terminal(capsys, verbose):
    reads = []
    fit(ProgressBar(verbose), reads=reads)
    out, err = capsys.readouterr()
    assert err == ""
    assert [re.sub(r"[\d.]+s$", "Xs", line) for line in out.splitlines()] == [
        "epoch 1/2  step 6  loss 0.1235  val_loss 1.235e+04  Xs",
        "epoch 2/2  step 12  loss 0.1235  val_loss 1.235e+04  Xs",
    ]
    assert reads == []


def test_an_open_end(capsys):
    fit(ProgressBar(), epochs=1, known=False, total=None)
    assert capsys.readouterr().out.startswith("epoch 1  step 6  loss")


def test_silence(capsys):
    fit(ProgressBar(0))
    assert capsys.readouterr() == ("", "")
    assert not any(CallbackList([ProgressBar(0)]).listens(hook) for hook in ("on_train_begin", "on_epoch_end"))


def test_lines_in_a_terminal_when_asked(terminal, capsys):
    fit(ProgressBar(2))
    assert terminal.getvalue() == ""
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("known", [True, False])
def test_a_bar_in_a_terminal_and_a_line_in_its_place(terminal, capsys, clock, known):
    fit(ProgressBar(), known=known)
    assert capsys.readouterr().out == ""
    lines = [line.split("\r") for line in terminal.getvalue().strip("\n").split("\n")]
    assert len(lines) == 2
    assert any(part.startswith("epoch 2/2") and ("0/6" if known else "0batch") in part for part in lines[1])
    assert re.fullmatch(r"epoch 2/2  step 12  loss 0.1235  val_loss 1.235e\+04  [\d.]+s", lines[1][-1])


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("logs", [{"loss": 1 / 3, "accuracy": 2 / 3}, {f"metric_{k}": k / 7 for k in range(20)}])
def test_a_bar_fits_the_terminal_and_the_line_has_all_values(monkeypatch, columns, logs):
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0)
    monkeypatch.setattr("tqdm.std.time", itertools.count(0, 0.1).__next__)
    reader, writer = pty.openpty()
    os.set_blocking(reader, False)
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream, modules=sys.modules))
        callbacks = CallbackList([ProgressBar()])
        event = {"trainer": None, "phase": "train", "step": 0, "epoch": 0, "epochs": 9, "steps": 500}
        callbacks.emit("on_epoch_begin", Event(**event))
        for batch in (3, 250, 499):
            callbacks.emit("on_train_batch_end", Event(**event, batch=batch, logs=logs))
        values = logs | {f"val_{name}": value for name, value in logs.items()}
        callbacks.emit("on_epoch_end", Event(**event, logs=values))
        text = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(reader, 4096):
                text += part
    os.close(reader)
    bars, line = text.decode().strip().rsplit("\r", 1)
    shown = [bar for bar in bars.split("\r") if "/500" in bar]
    assert all(len(bar) < columns for bar in shown)
    names = list(logs)[: 2 if len(logs) == 2 else columns // 40]
    assert all(f"{name}={logs[name]:.4g}" in shown[-1] for name in names)
    assert re.search(r"=[\d.e-]+$", shown[-1])  # whole values
    assert line.split("  ")[2:-1] == [f"{name} {value:.4g}" for name, value in values.items()]


def test_a_notebook_with_ipywidgets_has_the_bars_of_tqdm(monkeypatch, capsys, clock):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "ipywidgets" or None)
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    made = []
    monkeypatch.setattr(tqdm.auto, "tqdm", lambda **kwargs: made.append(kwargs) or tqdm.tqdm(**kwargs))
    fit(ProgressBar())
    assert [kwargs["desc"] for kwargs in made] == ["epoch 1/2", "epoch 2/2"]
    out, err = capsys.readouterr()
    assert "0/6" in err
    assert len(out.splitlines()) == 2  # on the standard error they would be red
    shell.config = {}  # IPython in a terminal or a script
    fit(ProgressBar())
    assert len(made) == 2


@pytest.mark.parametrize(
    ("losses", "names"),
    [
        (eg.losses.MeanSquaredError(), ["loss", "mean_absolute_error"]),
        (eg.losses.MeanSquaredError(name="loss"), ["loss", "mean_absolute_error"]),
        (
            [eg.losses.MeanSquaredError(), eg.losses.Huber()],
            ["loss", "mean_squared_error", "huber", "mean_absolute_error"],
        ),
    ],
)
def test_the_only_loss_is_shown_once(capsys, losses, names):
    x = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    trainer = eg.Trainer(nn.Dense(1), losses, eg.metrics.MeanAbsoluteError(), optax.sgd(0.1))
    history = trainer.fit(x, x, validation_data=(x, x), verbose=2).history
    values = trainer.evaluate(x, x)
    fitted, evaluated = (
        re.findall(r"  ([a-z_0-9]+) (?=[\d.e-]+  )", line) for line in capsys.readouterr().out.split("\n")[:2]
    )
    assert fitted == ["step", *names, *(f"val_{name}" for name in names)]
    assert evaluated == names
    assert len(values) == len(history) // 2 == len(names) + (len(names) == 2)
    if len(names) == 2:
        (own,) = values.keys() - set(names)
        assert history[own] == history["loss"]


def test_a_bar_reads_by_the_clock(terminal, clock):
    reads = []
    fit(ProgressBar(), epochs=1, steps=30, reads=reads)
    # A look a step and one more after each refresh: a quarter of a second is over every third step.
    assert reads == list(range(3, 31, 3))


@pytest.mark.parametrize("verbose", [1, 2])
def test_short_epochs_show_their_values_while_the_next_one_runs(terminal, capsys, verbose):
    callbacks, reads = CallbackList([ProgressBar(verbose)]), []
    event = {"trainer": None, "phase": "train", "steps": 1}
    callbacks.emit("on_train_begin", Event(**event, step=0, epoch=0))
    for epoch in range(4):
        callbacks.emit("on_epoch_begin", Event(**event, step=epoch, epoch=epoch))
        callbacks.emit("on_train_batch_end", Event(**event, step=epoch + 1, epoch=epoch, batch=0))
        logs = LazyLogs(lambda epoch=epoch: reads.append(epoch) or {"loss": epoch})
        callbacks.emit("on_epoch_end", Event(**event, step=epoch + 1, epoch=epoch, logs=logs))
        assert reads == list(range(max(epoch, 1)))
    callbacks.emit("on_train_end", Event(**event, step=4, epoch=3))
    assert reads == [0, 1, 2, 3]
    lines = (terminal.getvalue() if verbose == 1 else capsys.readouterr().out).strip("\n").split("\n")
    assert len(lines) == 4
    for epoch, line in enumerate(lines):
        last = line.split("\r")[-1]
        assert f"epoch {epoch + 1}" in last
        assert re.search(rf"loss {epoch}\b", last)


def test_an_epoch_after_a_short_one_has_a_bar_when_it_takes_longer(terminal, monkeypatch):
    now, made = [0.0], []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    bar = ProgressBar()
    for epoch, seconds in enumerate((0.1, 0.01, 0.2, 0.02)):  # of each of four batches
        event = {"trainer": None, "phase": "train", "epoch": epoch, "steps": 4}
        bar.on_epoch_begin(Event(**event, step=4 * epoch))
        for batch in range(4):
            now[0] += seconds
            bar.on_train_batch_end(Event(**event, step=4 * epoch + batch + 1, batch=batch, logs={"loss": 0.5}))
            made.append(None if bar._bar is None else (bar._bar.initial, bar._bar.n))
        bar.on_epoch_end(Event(**event, step=4 * epoch + 4, logs={"loss": 0.5}))
    bar.on_train_end(Event(None, "train", step=16, epoch=3))
    whole, none = [(0, 1), (0, 2), (0, 3), (0, 4)], 4 * [None]
    assert made == [*whole, *whole, *none[:1], (1, 2), (1, 3), (1, 4), *whole]
    assert len(re.findall(r"epoch \d  step \d+  loss 0.5  [\d.]+s\n", terminal.getvalue())) == 4


def test_several_steps_in_one_event(terminal, clock):
    callbacks = CallbackList([ProgressBar()])
    callbacks.emit("on_epoch_begin", Event(None, "train", step=0, epoch=0, steps=8))
    for batch in (3, 7):
        clock[0] += 1
        callbacks.emit("on_train_batch_end", Event(None, "train", step=batch + 1, epoch=0, batch=batch, steps=8))
    callbacks.emit("on_epoch_end", Event(None, "train", step=8, epoch=0, steps=8))
    assert callbacks.listens("on_train_batch_end")
    assert callbacks._callbacks[0]._batches == 8


def test_the_bar_of_a_resumed_epoch_counts_only_its_own_batches_as_speed(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0)
    callbacks = CallbackList([ProgressBar()])
    event = {"trainer": None, "phase": "train", "epoch": 0, "steps": 100}
    callbacks.emit("on_epoch_begin", Event(**event, step=290, resumed=True))
    bar = callbacks._callbacks[0]._bar
    for batch in (93, 97):  # the run continues with batch 90; several steps in one event
        callbacks.emit("on_train_batch_end", Event(**event, step=200 + batch + 1, batch=batch))
    shown = bar.format_dict
    assert (shown["initial"], shown["n"]) == (90, 98)
    callbacks.emit("on_epoch_end", Event(**event, step=300))
    callbacks.emit("on_epoch_begin", Event(**{**event, "epoch": 1}, step=300))
    callbacks.emit("on_train_batch_end", Event(**{**event, "epoch": 1}, step=303, batch=2))
    shown = callbacks._callbacks[0]._bar.format_dict
    assert (shown["initial"], shown["n"]) == (0, 3)
    callbacks.emit("on_train_end", Event(**event, step=303))


def test_a_bar_of_a_run_that_breaks_off_is_closed(terminal):
    callbacks = CallbackList([ProgressBar()])
    callbacks.emit("on_train_begin", Event(None, "train", step=0, epoch=0))
    callbacks.emit("on_epoch_begin", Event(None, "train", step=0, epoch=0, steps=8))
    callbacks.emit("on_train_end", Event(None, "train", step=0, epoch=0))
    assert terminal.getvalue().endswith("\n")


def phases(name):
    callbacks = CallbackList([ProgressBar()])
    event = {"trainer": None, "phase": name, "step": 9, "epoch": 1, "steps": 3}
    callbacks.emit(f"on_{name}_begin", Event(**event))
    for batch in range(3):
        callbacks.emit(f"on_{name}_batch_end", Event(**event, batch=batch, logs={"loss": 1.0}))
    callbacks.emit(f"on_{name}_end", Event(**event, logs={"loss": 0.5} if name == "test" else {}))


@pytest.mark.parametrize(
    ("name", "line"), [("test", "evaluate  3 batches  loss 0.5"), ("predict", "predict  3 batches")]
)
def test_evaluate_and_predict_in_lines(capsys, name, line):
    phases(name)
    out = capsys.readouterr().out
    assert re.fullmatch(re.escape(line) + r"  [\d.]+s\n", out)


@pytest.mark.parametrize(("name", "title"), [("test", "evaluate"), ("predict", "predict")])
def test_evaluate_and_predict_in_a_terminal(terminal, name, title):
    phases(name)
    bar, last = (terminal.getvalue().split("\r")[k] for k in (1, -1))
    assert bar.startswith(f"{title} 0/3")
    assert last.startswith(f"{title}  3 batches")


@pytest.mark.parametrize("verbose", [3, -1, "loud"])
def test_bad_verbose(verbose):
    with pytest.raises(ValueError, match="verbose="):
        ProgressBar(verbose)


class Device:
    """Computes what was queued when the test says so; whoever reads earlier waits for it."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.queued = 0.0, seconds, 0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)

    def logs(self):
        """The logs of a step that is queued now."""
        self.queued += 1
        end = self.queued * self.seconds

        def fetch():
            self.now = max(self.now, end)
            return {"loss": end}

        return LazyLogs(fetch, lambda: self.now >= end)


@pytest.mark.parametrize("seconds", [0.001, 0.07, 1.0, 20.0])
def test_the_seconds_of_lines_are_of_computed_epochs(monkeypatch, capsys, seconds):
    device, callbacks = Device(monkeypatch, seconds), CallbackList([ProgressBar(2)])
    callbacks.emit("on_train_begin", Event(None, "train", step=0, epoch=0))
    for epoch in range(12):  # queued at once
        callbacks.emit(
            "on_epoch_begin", Event(None, "train", step=epoch, epoch=epoch, elapsed=device.now, _made=device.now)
        )
        ended = Event(
            None, "train", step=epoch + 1, epoch=epoch, elapsed=device.now, _made=device.now, logs=device.logs()
        )
        callbacks.emit("on_epoch_end", ended)
    callbacks.emit("on_train_end", Event(None, "train", step=12, epoch=11, elapsed=device.now, _made=device.now))
    shown = [float(number) for number in re.findall(r"([\d.]+)s\n", capsys.readouterr().out)]
    np.testing.assert_allclose(shown, 12 * [seconds], rtol=1e-6)


def test_a_bar_shows_the_steps_that_are_computed(monkeypatch, terminal, capsys):
    bar = ProgressBar()
    device, callbacks = Device(monkeypatch, 1.0), CallbackList([bar])
    run = {"trainer": None, "phase": "train", "epoch": 0, "steps": 100}
    callbacks.emit("on_epoch_begin", Event(**run, step=0, elapsed=0.0))
    places = []
    for batch in range(100):
        if batch >= 90:
            device.now += 2.0
        logs = device.logs()
        callbacks.emit(
            "on_train_batch_end",
            Event(**run, step=batch + 1, batch=batch, elapsed=device.now, _made=device.now, logs=logs),
        )
        places.append(bar._bar.n)
    assert places == 90 * [0] + list(range(2, 22, 2))
    assert device.now == 20.0  # nobody waited
    moves = []
    monkeypatch.setattr(bar._bar, "update", lambda n: moves.append((device.now, n)))
    callbacks.emit("on_epoch_end", Event(**run, step=100, elapsed=device.now, _made=device.now, logs=logs))
    assert device.now == 100.0
    assert len(moves) >= 20
    assert [now for now, _ in moves] == sorted({now for now, _ in moves})
    assert terminal.getvalue().endswith("  100.0s\n")


def test_the_seconds_of_an_evaluation_are_of_computed_batches(monkeypatch, capsys):
    device, callbacks = Device(monkeypatch, 5.0), CallbackList([ProgressBar(2)])
    run = {"trainer": None, "phase": "test", "step": 0, "epoch": 0}
    callbacks.emit("on_test_begin", Event(**run))
    callbacks.emit("on_test_end", Event(**run, logs=device.logs()))
    assert capsys.readouterr().out.endswith("  5.0s\n")


def test_a_run_without_epochs_has_one_bar_of_all_steps_and_lines_above_it(terminal, capsys):
    bar = ProgressBar()
    event = {"trainer": None, "phase": "train", "epoch": 0, "last_step": 9}
    logs = {"loss": 0.5, "val_loss": 0.25}
    bar.on_train_begin(Event(step=3, **event))
    bar.on_epoch_begin(Event(step=3, resumed=True, **event))
    for step in range(4, 10):
        bar.on_train_batch_end(Event(step=step, batch=step - 1, logs={"loss": 0.5}, **event))
        if step == 6:
            bar.on_evaluation_end(Event(step=6, batch=5, logs=logs, evaluated=("val_",), **event))
    bar.on_train_end(Event(step=9, logs={"loss": 0.5}, ended="finished", **event))
    shown = terminal.getvalue()
    assert "epoch 1 0/6 |" in shown
    assert "epoch 1  step 6/9  loss 0.5  val_loss 0.25\n" in shown
    assert re.search(r"epoch 1  step 9/9  loss 0.5  \S+s\n$", shown)
    assert capsys.readouterr().out == ""
