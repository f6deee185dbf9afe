"""`elegy fit` trains as the same calls in Python, keeps its configuration, and goes on after an interruption."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
import sys

import jax
import numpy as np
import optax
import pytest
from boring_modules import High, regression
from programs import call, seen
from programs import program as program

import elegy as eg
from elegy.checkpoint import newest_intact
from elegy.cli import saved

FIT = "fit prog.py --data.rows 30 --optimizer.rates.first 0.02 --trainer.seed 7 --fit.batch_size 4 --fit.verbose 0"
RUN = pathlib.Path("runs/High")


def trained(epochs=3):
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.02), seed=7)
    options = {"epochs": epochs, "batch_size": 4, "verbose": 0, "validation_data": regression(9, seed=5)}
    trainer.fit(*regression(30), **options)
    return trainer


def check_same(run, expected):
    """The newest checkpoint of a run has the state and the history of a trainer, to the bit."""
    path = newest_intact(run / "checkpoints")
    loaded, metadata = eg.checkpoint.restore(path, expected.state)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.state.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.optimizer, expected.state.optimizer)
    assert metadata["step"] == expected.step
    assert metadata["history"] == json.loads(json.dumps(expected.history.state_dict()))
    return path


def test_fit_trains_as_in_python_and_keeps_its_configuration(program):
    call(*FIT.split(), "--fit.epochs", "3", "--optimizer.kind", "adam")
    path = check_same(RUN, trained())
    del sys.modules["elegy_program_prog"]
    pathlib.Path("prog.py").unlink()
    config = json.loads((path / "metadata.json").read_text())["config"]  # with json alone
    assert config == saved.read_config(str(path)) == saved.read_config(str(RUN))
    assert "elegy_program_prog" not in sys.modules
    assert config["optimizer"] == {"rates": {"first": 0.02, "others": []}, "kind": "adam"}
    assert config["trainer"]["seed"] == 7
    assert config["fit"]["epochs"] == 3
    assert config["program"] == {"source": str(pathlib.Path("prog.py").absolute())} | {
        name: name for name in ("build", "data", "optimizer")
    }


def test_a_run_goes_on_to_the_same_bits(program):
    call(*FIT.split(), "--fit.epochs", "3", "--fit.max_steps", "11", "--trainer.run_dir", "runs/cut")
    call("fit", "--resume", "runs/cut", "--fit.max_steps", "null")
    check_same(pathlib.Path("runs/cut"), trained())
    call("fit", "--resume", "runs/cut", "--fit.epochs", "4", "--fit.max_steps", "null")
    expected = check_same(pathlib.Path("runs/cut"), trained(4))
    assert [path.name for path in pathlib.Path("runs").iterdir()] == ["cut"]
    assert saved.read_config(str(expected))["fit"]["epochs"] == 4


@pytest.mark.slow
def test_a_run_that_moved_goes_on_with_its_program_given(program):
    call(*FIT.split(), "--fit.epochs", "2")
    pathlib.Path("prog.py").rename("moved.py")
    pathlib.Path("runs").rename("elsewhere")
    call("fit", "moved.py", "--resume", "elsewhere/High", "--fit.epochs", "3")
    check_same(pathlib.Path("elsewhere/High"), trained())
    sys.modules.pop("elegy_program_moved")


def test_a_run_goes_on_with_values_that_json_lacks(program, tmp_path):
    (tmp_path / "values.yaml").write_text("build:\noptimizer:\n  rates: {others: [.inf, -.inf, .nan, 1e-5]}\n")
    call(*["fit", "prog.py", "--config", "values.yaml", "--build.scale", ".nan", "--fit.verbose", "0"])
    sys.modules.pop("elegy_program_prog")
    call("fit", "--resume", "runs/High", "--fit.epochs", "2")
    assert math.isnan(seen()["build"]["scale"])
    np.testing.assert_array_equal(seen()["optimizer"]["rates"].others, (math.inf, -math.inf, math.nan, 1e-5))


def test_resume_auto_begins_or_goes_on(program):
    line = [*FIT.split(), "--resume", "auto"]
    call(*line, "--fit.epochs", "1")
    call(*line, "--fit.epochs", "3")
    check_same(RUN, trained())
    assert not pathlib.Path("runs/High_1").exists()


WIDE = """
import flax.linen as nn

def build(width: int = 4):
    return nn.Sequential([nn.Dense(width), nn.Dense(2)]), eg.losses.MeanSquaredError()
"""


def test_a_run_of_other_options_that_cannot_go_on_says_which_they_are(program, capsys):
    with open("prog.py", "a") as file:
        file.write(WIDE)
    line = ["fit", "prog.py", "--fit.verbose", "0", "--resume", "auto", "--trainer.run_dir", "runs/wide"]
    call(*line, "--build.width", "5", "--data.rows", "30")
    for options, text in (
        ([], "--build.width is 4 (in the run 5); --data.rows is 22 (in the run 30)."),
        (["--build.width", "5"], "not those of the run: --data.rows is 22 (in the run 30)."),
    ):
        with pytest.raises(SystemExit):
            call(*line, "--fit.epochs", "2", *options)
        assert capsys.readouterr().err.endswith(f"{text}\n")


INJECTED = """
def optimizer(rate: float = 0.25):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
"""
IN_BUILD = """
def build(rate: float = 0.25):
    return High(), eg.losses.MeanSquaredError(), None, optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
del optimizer
"""


def rate_and_weight() -> tuple[float, float]:
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
    template = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=tx)
    template.init_on_batch(*regression(4))
    template.restore(RUN, hyperparameters="saved")
    rate = template.state.optimizer.state.hyperparams["learning_rate"]
    return float(rate), float(np.sum(template.state.params["w"]))


@pytest.mark.parametrize(("text", "group", "how"), [(INJECTED, "optimizer", "auto"), (IN_BUILD, "build", str(RUN))])
def test_an_option_of_the_optimizer_that_is_given_anew_is_used(program, text, group, how):
    with open("prog.py", "a") as file:
        file.write(text)
    resume = ["fit", "prog.py", "--fit.verbose", "0", "--resume", how, "--fit.epochs"]
    call("fit", "prog.py", "--fit.verbose", "0")
    first = rate_and_weight()
    assert first[0] == 0.25
    call(*resume, "2", f"--{group}.rate", "0.0")
    assert rate_and_weight() == (0.0, first[1])  # at the rate 0 nothing moves
    assert saved.read_config(str(RUN))[group]["rate"] == 0.0
    call(*resume, "3", f"--{group}.rate", "0.125")
    assert rate_and_weight()[0] == 0.125
    assert rate_and_weight()[1] != first[1]


RANKED = """
def build():
    keep = eg.callbacks.ModelCheckpoint(monitor="rank", mode="min", save_top_k=3)
    rank = eg.callbacks.LambdaCallback(on_epoch_end=lambda event: event.log("rank", event.epoch))
    return {"module": High(), "loss": eg.losses.MeanSquaredError(), "callbacks": [rank, keep]}
"""


def test_the_best_checkpoint_is_read(program):
    with open("prog.py", "a") as file:
        file.write(RANKED)
    call(*FIT.split(), "--fit.epochs", "2")
    call("predict", str(RUN), "--checkpoint", "best", "--output", "best.npy")
    call("predict", str(RUN), "--output", "newest.npy")
    first = trained(1).predict(regression(9, seed=5)[0])
    np.testing.assert_allclose(np.load("best.npy"), first, rtol=1e-5)
    assert not np.allclose(np.load("newest.npy"), first, rtol=1e-5)


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_anew(program, capsys):
    call(*FIT.split(), "--fit.epochs", "1")
    shutil.rmtree(RUN / "checkpoints")
    call("fit", "--resume", str(RUN), "--fit.epochs", "3")
    assert "has no checkpoint yet" in capsys.readouterr().err
    check_same(pathlib.Path("runs/High_1"), trained())


def test_every_run_has_a_folder_unless_it_is_null(program, capsys):
    call(*FIT.split(), "--fit.epochs", "1", "--fit.verbose", "2")
    assert capsys.readouterr().out.endswith("run folder: runs/High\n")
    call(*FIT.split(), "--trainer.run_dir", "null")
    assert [path.name for path in pathlib.Path("runs").iterdir()] == ["High"]


BAD = {
    "fit runs/High": "is not a program: `elegy fit --resume runs/High` goes on with a run",
    "fit --resume gone": "no run and no checkpoint at gone",
    "fit --resume runs/High --optimizer.rates.frist 1": "Did you mean 'optimizer.rates.first'",
    "fit --resume runs/High --fit.epochs x": "--fit.epochs takes int or null",
}


def test_bad_input_of_resume(program, capsys):
    call(*FIT.split(), "--fit.max_steps", "1")
    before = sorted(pathlib.Path("runs").rglob("*"))
    for line, message in BAD.items():
        with pytest.raises(SystemExit) as ended:
            call(*line.split())
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert sorted(pathlib.Path("runs").rglob("*")) == before


def test_a_configuration_of_a_newer_program_names_the_key(program, capsys):
    call(*FIT.split(), "--fit.max_steps", "1")
    text = pathlib.Path("prog.py").read_text()
    pathlib.Path("prog.py").write_text(text.replace("rows: int = 22", "lines: int = 22"))
    with pytest.raises(SystemExit):
        call("fit", "--resume", str(RUN))
    assert "the saved configuration: unknown key 'data.rows'" in capsys.readouterr().err
