"""Two examples from the command line, as processes: trained, killed, resumed, evaluated, exported; as in Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import ROOT, environment

import elegy as eg
from elegy.checkpoint import newest_intact

EXAMPLES = ROOT / "examples"

# The same program in Python: it trains without interruption, saves, and prints what it measures.
IN_PYTHON = """
import json, sys
import numpy as np
import elegy as eg
sys.path.insert(0, {examples!r})
import {name} as program

parts, data = {parts}, {data}
trainer = eg.Trainer(**parts)
trainer.fit(**data, epochs={epochs}, batch_size=16, verbose=0)
trainer.save("whole")
inputs, labels = {evaluated}
np.save("inputs.npy", inputs)
np.save("expected.npy", trainer.predict(inputs))
print(json.dumps(trainer.evaluate(inputs, labels, verbose=0)))
"""

# A program (`-m MODULE` or a file) that dies when its second checkpoint has its name.
KILLED = """
import os, runpy, signal, sys
from elegy.checkpoint import find_checkpoints

rename = os.rename

def rename_and_die(source, target):
    rename(source, target)
    folder = os.path.dirname(os.fspath(target))
    if os.path.basename(folder) == "checkpoints" and len(find_checkpoints(folder)) > 1:
        os.kill(os.getpid(), signal.SIGKILL)

os.rename = rename_and_die
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""

DIGITS = {
    "parts": "{**program.build(width=32), 'optimizer': program.optimizer(2e-3)}",
    "data": "program.data(rows=400)",
    "evaluated": "data['validation_data']",
    "options": ["--build.width", "32", "--optimizer.learning_rate", "2e-3", "--data.rows", "400"],
}
DIABETES = {
    "parts": "dict(zip(('module', 'loss', 'metrics', 'optimizer'), program.build(program.Layers(8))))",
    "data": "dict(zip(('inputs', 'labels'), program.data()))",
    "evaluated": "data.values()",
    "options": ["--build.layers.width", "8"],
}
EPOCHS = 15


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_after_a_checkpoint(folder, program, *arguments):
    """Runs a program that is killed, as by a machine that fails, as soon as there is a second checkpoint."""
    command = [sys.executable, "-c", KILLED, *program, *arguments]
    killed = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how", "program"),
    [
        ("cli_digits", DIGITS, ["-m", "elegy"]),
        ("cli_diabetes", DIABETES, [os.fspath(EXAMPLES / "cli_diabetes.py")]),
    ],
    ids=["digits", "diabetes"],
)
def test_an_example_from_the_command_line(name, how, program, tmp_path):
    command = [sys.executable, *program]
    code = IN_PYTHON.format(name=name, examples=os.fspath(EXAMPLES), epochs=EPOCHS, **how)
    expected = json.loads(run(tmp_path, sys.executable, "-c", code))
    file = [] if program[-1].endswith(".py") else [os.fspath(EXAMPLES / f"{name}.py")]
    fit = ["fit", *file, *how["options"], "--fit.batch_size", "16", "--fit.epochs", str(EPOCHS)]
    kill_after_a_checkpoint(tmp_path, program, *fit)
    (folder,) = (tmp_path / "runs").iterdir()
    run(tmp_path, *command, "fit", "--resume", os.fspath(folder))
    state, metadata = eg.checkpoint.restore(newest_intact(folder / "checkpoints"))
    whole, of_whole = eg.checkpoint.restore(tmp_path / "whole")
    assert state.keys() == whole.keys()
    for path, leaf in whole.items():
        values = [jax.random.key_data(one) if "key" in path else one for one in (state[path], leaf)]
        np.testing.assert_array_equal(*map(np.asarray, values), err_msg=path)
    assert metadata["history"] == of_whole["history"]
    assert json.loads(run(tmp_path, *command, "evaluate", os.fspath(folder))) == expected
    run(tmp_path, *command, "export", os.fspath(folder), "--output", "exported")
    function = jax.export.deserialize(bytearray((tmp_path / "exported" / "pred_step.jax_export").read_bytes()))
    run(tmp_path, *command, "predict", os.fspath(folder), "--output", "outputs.npy")
    outputs = np.load(tmp_path / "outputs.npy")
    np.testing.assert_array_equal(outputs, np.load(tmp_path / "expected.npy"))
    exported = function.call(np.load(tmp_path / "inputs.npy"))  # another program, whose sums have another order
    np.testing.assert_allclose(exported, outputs, rtol=1e-5, atol=1e-6)
