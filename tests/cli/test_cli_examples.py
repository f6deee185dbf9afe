"""Two examples from the command line, as processes: trained, killed, resumed, evaluated, exported; as in Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from processes import ROOT, environment

import elegy as eg
from elegy.checkpoint import find_checkpoints, newest_intact

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
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_after_a_checkpoint(folder, *command):
    """Starts a training and kills it, as a machine that fails would, when there is a second checkpoint."""
    process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(find_checkpoints(path)[1:] for path in folder.glob("runs/*/checkpoints")):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how", "command"),
    [
        ("cli_digits", DIGITS, [sys.executable, "-m", "elegy.cli"]),
        ("cli_diabetes", DIABETES, [sys.executable, os.fspath(EXAMPLES / "cli_diabetes.py")]),
    ],
    ids=["digits", "diabetes"],
)
def test_an_example_from_the_command_line(name, how, command, tmp_path):
    code = IN_PYTHON.format(name=name, examples=os.fspath(EXAMPLES), epochs=EPOCHS, **how)
    expected = json.loads(run(tmp_path, sys.executable, "-c", code))
    program = [] if command[-1].endswith(".py") else [os.fspath(EXAMPLES / f"{name}.py")]
    fit = [*command, "fit", *program, *how["options"], "--fit.batch_size", "16", "--fit.epochs", str(EPOCHS)]
    kill_after_a_checkpoint(tmp_path, *fit)
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
