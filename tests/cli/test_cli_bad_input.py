"""What is wrong on a command line ends it with one message, before anything is computed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from processes import environment
from programs import call
from programs import program as program

CONFIGS = {
    "typo.yaml": "build: {scal: 2}",
    "group.yaml": "biuld: {scale: 2}",
    "field.yaml": "optimizer: {rates: {frist: 2}}",
    "rates.yaml": "optimizer: {rates: 2}",
    "far.yaml": "fit: {qqqqqq: 2}",
    "list.yaml": "- 1",
    "code.yaml": "build: {scale: !!python/object/apply:os.system ['touch hacked']}",
    "type.yaml": "fit: {epochs: many}",
    "flat.yaml": "build: 3",
    "twice.yaml": "fit:\n  epochs: 1\n  batch_size: 4\n  epochs: 2",
    "groups.yaml": "fit: {epochs: 1}\nbuild: {scale: 2}\nfit: {batch_size: 4}",
    "line.json": '{"fit": {"epochs": 1, "epochs": 2}}',
}

BAD = [
    ("evaluat", "no command 'evaluat'. Did you mean 'evaluate'?"),
    ("fit", "give a program"),
    ("fit gone.py", "there is no file .*gone.py"),
    ("fit gone.module:build", "there is no module 'gone'"),
    ("fit prog.py:bild", "no function 'bild'. Did you mean 'build'\\? It has build, optimizer, data, tuples"),
    ("fit prog.py --fit.epoch 3", "unknown option --fit.epoch. Did you mean 'fit.epochs'\\?"),
    ("fit prog.py --first 3", "unknown option --first. Did you mean 'optimizer.rates.first'\\?"),
    ("fit prog.py --fit.epochs 1.5", "--fit.epochs takes int or null, but it is 1.5"),
    ("fit prog.py --fit.epochs true", "--fit.epochs takes int or null, but it is true"),
    ("fit prog.py --optimizer.kind rmsprop", "--optimizer.kind takes adam or sgd, but it is rmsprop"),
    ("fit prog.py --optimizer.rates.first x", "--optimizer.rates.first takes float, but it is x"),
    ("fit prog.py --optimizer.rates 3", "--optimizer.rates has values by name: write --optimizer.rates.first VALUE"),
    ("fit prog.py --config rates.yaml", "rates.yaml: 'optimizer.rates' is a group: it has values by name"),
    (
        "fit prog.py --config far.yaml",
        "far.yaml: unknown key 'fit.qqqqqq'. Options of 'fit': 'fit.batch_size', 'fit.epochs'",
    ),
    ("fit prog.py --fit.validation_freq.steps 0", "the interval must be a positive number"),
    ("fit prog.py more", "unrecognized arguments: more"),
    ("fit prog.py --config", "needs the path of a file"),
    ("fit prog.py --config gone.yaml", "gone.yaml cannot be read: .*No such file"),
    ("fit prog.py --config typo.yaml", "typo.yaml: unknown key 'build.scal'. Did you mean 'build.scale'\\?"),
    ("fit prog.py --config group.yaml", "group.yaml: unknown key 'biuld'. Did you mean 'build'\\?"),
    ("fit prog.py --config field.yaml", "'optimizer.rates.frist'. Did you mean 'optimizer.rates.first'\\?"),
    ("fit prog.py --config list.yaml", "must be a mapping of groups"),
    ("fit prog.py --config code.yaml", "code.yaml cannot be read"),
    ("fit prog.py --config type.yaml", "--fit.epochs takes int or null, but it is many"),
    ("fit prog.py --config flat.yaml", "flat.yaml: 'build' is a group: it has values by name, not the value 3"),
    ("fit prog.py --config twice.yaml", "twice.yaml has the key fit.epochs twice, in the lines 2 and 4"),
    ("fit prog.py --config groups.yaml", "groups.yaml has the key fit twice, in the lines 1 and 3"),
    ("fit prog.py --config line.json", "line.json has the key fit.epochs twice, in the lines 1 and 1"),
    ("fit prog.py --build.scale=-inf", "--build.scale takes float, but it is -inf. In YAML, .* is -.inf"),
    ("fit prog.py --fit.batch_size 0", "error: batch_size must be a positive integer, not 0"),
    ("fit prog.py --fit.epochs -1", "error: epochs must be a positive integer, not -1"),
    ("fit prog.py --trainer.run_dir prog.py/run", "error: run_dir='prog.py/run': .*prog.py is a file, so no folder"),
    ("fit prog.py --fit.validation_split 0.5", "validation_data and validation_split were both given"),
    ("summary prog.py --summary.depth -1", "error: depth"),
    ("cost prog.py --cost.batch_size 0", "error: batch_size must be a positive integer, not 0"),
    ("fit prog.py:no_module", "without a 'module'"),
    ("fit prog.py:seeded", "'seed', which is the option --trainer.seed"),
    ("fit prog.py:tuples", "both tuples\\(\\) and optimizer\\(\\) return an optimizer"),
    ("fit prog.py:nothing", "nothing\\(\\) returned nothing. It returns the module"),
    ("fit prog.py:made", "made\\(\\) returned a Trainer"),
    ("fit prog.py:untyped", "required: build.width"),
    ("fit prog.py:of_functions", "'act' of of_functions\\(\\) has the type .*Callable"),
    ("fit prog.py --trainer.nonfinite never", "--trainer.nonfinite takes 'ignore' or .*, but it is never"),
    ("fit prog.py --trainer.seed 1.5", "--trainer.seed takes int, but it is 1.5"),
    ("fit prog.py --trainer.strategy fast", "the trainer cannot be made: .*fast"),
    ("fit package", "there is no function 'build'"),
    ("evaluate", "give a run or a checkpoint"),
    ("evaluate gone", "no run and no checkpoint at 'gone'"),
    ("evaluate .", "has no checkpoint"),
    ("summary prog.py --trainer.run_dir x", "unknown option --trainer.run_dir"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_ends_with_a_message(program, line, message, capsys, tmp_path):
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    with pytest.raises(SystemExit) as ended:
        call(*line.split())
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("elegy ")
    assert err.count("error:") >= 1
    assert re.search(message, err), err
    assert not (tmp_path / "hacked").exists()


def test_jsonargparse_is_missing(program, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit) as ended:
        call("fit", program)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "elegy fit: error: the command line needs the library 'jsonargparse': "
        'install it with `pip install "elegy[cli]"`.\n'
    )


def test_an_error_of_the_program_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        call("fit", str(tmp_path / "broken.py"))


OWN = """
import numpy as np
import optax, elegy as eg
from boring_modules import High


class Stops(eg.callbacks.Callback):
    def on_train_begin(self, event):
        eg.Every(steps=0)


def build():
    return {"module": High(), "loss": eg.losses.MeanSquaredError(), "optimizer": optax.sgd(0.1), "callbacks": [Stops()]}


def data(late: bool = False):
    return (np.ones((4, 3)), np.ones((4, 2))) if late else np.zeros(3).reshape(2)
"""


@pytest.mark.parametrize(("options", "message"), [((), "cannot reshape"), (("--data.late", "true"), "interval")])
def test_an_error_in_the_users_functions_keeps_its_traceback_whoever_raised_it(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(ValueError, match=message):
        call("fit", "own.py", "--trainer.run_dir", "null", *options)


@pytest.mark.slow
def test_the_command_is_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "elegy", "fit", "gone.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "there is no file" in done.stderr
    assert "Traceback" not in done.stderr
