"""The commands compute what the same calls in Python do."""

from __future__ import annotations

import json
import pathlib
import re
import sys

import jax
import numpy as np
import optax
import pytest
from boring_modules import High, regression
from programs import call, seen
from programs import program as program

import elegy as eg
from elegy.cli import commands

EPOCHS, RATE = 3, 0.02


def trained(**kwargs):
    """The same training in Python."""
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(RATE), seed=7, **kwargs)
    options = {"epochs": EPOCHS, "batch_size": 4, "verbose": 0, "validation_data": regression(9, seed=5)}
    trainer.fit(*regression(30), **options)
    return trainer


def checkpoint(path, **more):
    """A checkpoint as `elegy fit` would write it with some options."""
    config = {
        "program": {"source": str(pathlib.Path("prog.py").absolute()), "build": "build", "data": "data"}
        | {"optimizer": "optimizer"},
        "data": {"rows": 30},
        "optimizer": {"rates": {"first": RATE}},
        **more,
    }
    trainer = trained(config=config)
    trainer.save(path)
    return trainer


def test_options_reach_the_functions_with_their_types(program, capsys):
    pathlib.Path("run.yaml").write_text("data: {rows: 20}\nfit: {epochs: 9}\nbuild: {scale: 3e-4}\n")
    line = "summary prog.py --config run.yaml --data.rows=25 --data.names.a 3 --build.path a/b --optimizer.kind sgd"
    call(*line.split(), "--build.extra", '{"class_path": "antigravity"}', "--optimizer.rates.others", "[1, 2e-1]")
    got = seen()
    assert got["data"] == {"rows": 25, "names": {"a": 3}}
    extra = {"class_path": "antigravity"}
    assert got["build"] == {"scale": 3e-4, "act": abs, "extra": extra, "path": pathlib.Path("a/b")}
    assert "antigravity" not in sys.modules  # a value is data, whatever it looks like
    assert got["optimizer"]["kind"].name == "sgd"
    assert got["optimizer"]["rates"].others == (1.0, 0.2)
    assert "Total" in capsys.readouterr().out


def test_help_has_the_docstrings_of_the_program_and_of_the_trainer(program, capsys):
    with pytest.raises(SystemExit) as ended:
        call("fit", program, "--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a factor, in 100% of the cases. (type: float, default: 1.0)" in text
    assert "the first rate. (type: float, default: 0.05)" in text
    assert "how many epochs to train" in text
    assert "--build.act" not in text  # a function has no values that a file could hold


def test_a_group_with_nothing_in_it_has_its_defaults(program, capsys):
    pathlib.Path("run.yaml").write_text("optimizer:\n  rates:\n    # first: 0.5\nbuild:\n")
    for config in ([], ["--config", "run.yaml"]):
        with pytest.raises(SystemExit):
            call("fit", program, *config, "--print_config")
    printed = capsys.readouterr().out
    assert printed == 2 * printed[: len(printed) // 2]


def test_printed_configuration_is_read_again(program, capsys):
    with pytest.raises(SystemExit):
        call("fit", program, "--optimizer.rates.first", "1e-7", "--fit.max_steps", "5", "--print_config")
    pathlib.Path("again.yaml").write_text(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        call("fit", program, "--config", "again.yaml", "--print_config")
    assert capsys.readouterr().out == pathlib.Path("again.yaml").read_text()
    assert "first: 1.0e-07" in pathlib.Path("again.yaml").read_text()


def test_evaluate_predict_and_export_a_checkpoint(program, tmp_path, capsys):
    expected = checkpoint("saved")
    call("evaluate", "saved")
    assert json.loads(capsys.readouterr().out) == expected.evaluate(*regression(9, seed=5), verbose=0)
    call("evaluate", "saved", "--on", "train", "--data.rows", "10", "--evaluate.batch_size", "3")
    assert json.loads(capsys.readouterr().out) == expected.evaluate(*regression(10), batch_size=3, verbose=0)
    call("predict", "saved", "--output", "out.npy")
    np.testing.assert_array_equal(np.load("out.npy"), expected.predict(regression(9, seed=5)[0]))
    np.save("inputs.npy", regression(5, seed=9)[0])
    call("predict", "saved", "--inputs", "inputs.npy", "--output", "out.npz")
    np.testing.assert_array_equal(np.load("out.npz")["outputs"], expected.predict(regression(5, seed=9)[0]))
    call("export", "saved", "--output", "exported")
    assert "wrote exported" in capsys.readouterr().out
    function = jax.export.deserialize(bytearray((tmp_path / "exported" / "pred_step.jax_export").read_bytes()))
    x = regression(9, seed=5)[0]
    np.testing.assert_allclose(function.call(x), expected.predict(x), rtol=1e-6)


def test_cost_and_learning_rate_are_those_of_the_trainer(program, capsys):
    call("cost", program, "--cost.batch_size", "16")
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05))
    assert capsys.readouterr().out == f"{trainer.cost(*regression(22), batch_size=16)}\n"
    call("find-lr", program, "--find_lr.steps", "20", "--output", "test.png")
    suggestion = trainer.find_learning_rate(*regression(22), steps=20).suggestion
    assert capsys.readouterr().out == f"{suggestion:.3g}\n"
    assert pathlib.Path("test.png").read_bytes().startswith(b"\x89PNG")


MISSING = {
    "flatbuffers": ("export saved --output exported", r'elegy export needs .*`pip install "elegy\[export\]"`'),
    "matplotlib": ("find-lr prog.py --output test.png", "elegy find-lr --output needs .*`pip install matplotlib`"),
}


@pytest.mark.parametrize("library", MISSING)
def test_a_missing_library_is_told_before_anything_is_computed(library, program, tmp_path, capsys, monkeypatch):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(commands, "first_batch", lambda data: pytest.fail("the data was read"))
    monkeypatch.setattr(eg.Trainer, "find_learning_rate", lambda *_, **__: pytest.fail("the test has run"))
    line, message = MISSING[library]
    more = [] if "prog.py" in line else ["--program", program]
    with pytest.raises(SystemExit) as ended:
        call(*line.replace("prog.py", program).split(), *more)
    assert ended.value.code == 2
    assert re.search(f"error: {message}", capsys.readouterr().err)


def test_where_the_plot_of_find_lr_cannot_lie_is_told_before_the_test(program, capsys, monkeypatch):
    monkeypatch.setattr(eg.Trainer, "find_learning_rate", lambda *_, **__: pytest.fail("the test has run"))
    with pytest.raises(SystemExit) as ended:
        call("find-lr", program, "--output", "nowhere/test.png")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert re.search("error: --output nowhere/test.png: the directory .*nowhere does not exist", told)


def test_a_checkpoint_without_a_configuration_needs_a_program(program, capsys):
    expected = trained(config={"width": 64})  # not of the command line
    expected.save("bare")
    with pytest.raises(SystemExit):
        call("evaluate", "bare")
    assert "pass --program FILE:FUNCTION" in capsys.readouterr().err
    call("evaluate", "bare", "--program", "prog.py", "--optimizer.rates.first", str(RATE), "--trainer.seed", "7")
    assert json.loads(capsys.readouterr().out) == expected.evaluate(*regression(9, seed=5), verbose=0)


BAD = {
    "evaluate saved --on test": "data\\(\\) returned no test_data",
    "predict saved --output out.txt": "must end in .npy or .npz",
    "predict saved --output gone/out.npy": "the directory .*gone does not exist",
    "predict saved --output out.npy --inputs gone.npy": "gone.npy cannot be read",
    "predict saved": "required: output",
    "predict saved --output out.npy --inputs wide.npy": (
        r"wide.npy has inputs: float32\[rows,4\], but the inputs of the program's data are inputs: float32\[rows,3\]"
    ),
    "predict saved --output out.npy --inputs named.npz": (
        r"named.npz has a: float32\[rows,3\], b: int32\[rows\], but the inputs of the program's data are inputs: "
    ),
    "evaluate saved --fit.epochs 3": "unknown option --fit.epochs",
    "evaluate moved": "there is no file .*gone.py.* pass --program FILE:FUNCTION",
}


def test_bad_input_of_commands_that_read(program, capsys):
    checkpoint("saved")
    np.save("wide.npy", np.ones((5, 4), np.float32))
    np.savez("named.npz", a=np.ones((5, 3), np.float32), b=np.ones(5, np.int32))
    checkpoint("moved", program={"source": "/gone.py", "build": "build"})
    for line, message in BAD.items():
        with pytest.raises(SystemExit) as ended:
            call(*line.split())
        assert ended.value.code == 2
        assert re.search(message, capsys.readouterr().err), line
