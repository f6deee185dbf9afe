"""`elegy serve` answers what the checkpoint or the export predicts."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys

import httpx
import numpy as np
import optax
import pytest
from boring_modules import High, regression
from processes import ROOT, environment
from programs import call
from programs import program as program

import elegy as eg
from elegy.cli import commands
from elegy.serving import server

FIT = "fit prog.py --fit.max_steps 3 --fit.batch_size 4 --fit.verbose 0"
X = regression(5, seed=9)[0]


def trained():
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05))
    trainer.fit(*regression(22), batch_size=4, max_steps=3, verbose=0)
    return trainer


def test_a_checkpoint_and_an_export_reach_the_server(program, monkeypatch):
    calls = []

    @functools.wraps(server.serve)  # its parameters are the options
    def serve(served, **how):
        calls.append((served, how))

    monkeypatch.setattr(server, "serve", serve)
    call(*FIT.split())
    call("serve", "runs/High", "--serve.port", "0", "--serve.max_wait_ms", "1")
    call("export", "runs/High", "--output", "exported")
    call("serve", "exported", "--serve.max_batch_size", "4")
    (of_run, how), (of_export, how_export) = calls
    assert how == {"host": "127.0.0.1", "port": 0, "max_batch_size": 64, "max_wait_ms": 1.0, "max_bytes": 64_000_000}
    assert how_export["max_batch_size"] == 4
    expected = trained().predict(X)
    np.testing.assert_array_equal(of_run.predict(X), expected)
    np.testing.assert_allclose(of_export.predict(X), expected, rtol=1e-6)
    assert of_run.described() == of_export.described() == {"inputs": "float32[rows,3]"}
    assert of_run.about["step"] == 3


WRONG = {
    "port 70000": "port=70000: it must be a number from 0 to 65535",
    "max_batch_size 0": "max_batch_size must be a positive integer, not 0",
    "max_bytes -1": "max_bytes must be a positive integer, not -1",
    "max_wait_ms .inf": "max_wait_ms=inf: it must be finite and not negative",
    "host 256.0.0.1": "host='256.0.0.1', port=8000: nothing can listen there",
}


@pytest.mark.parametrize(("option", "message"), WRONG.items(), ids=WRONG)
def test_wrong_options_are_told_before_the_model_is_loaded(program, option, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    monkeypatch.setattr(commands, "first_batch", lambda data: pytest.fail("the data was read"))
    with pytest.raises(SystemExit) as ended:
        call("serve", "run", "--program", program, *f"--serve.{option}".split())
    assert ended.value.code == 2
    assert f"error: --serve.{message}" in capsys.readouterr().err


def test_without_its_library_the_server_says_what_to_install(program, monkeypatch, capsys):
    call(*FIT.split())
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as ended:
        call("serve", "runs/High")
    assert ended.value.code == 2
    assert "needs the library 'uvicorn': install it with `pip install \"elegy[serve]\"`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_process_serves_until_it_is_interrupted(program):
    call(*FIT.split())
    command = [sys.executable, "-m", "elegy", "serve", "runs/High", "--serve.port", "0"]
    env = environment()
    env["PYTHONPATH"] += os.pathsep + os.fspath(ROOT / "tests")  # for the modules of the program
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    port = None
    for line in process.stderr:
        if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
            port = found[1]
            break
    assert port is not None
    answer = httpx.post(f"http://127.0.0.1:{port}/predict", json={"inputs": X.tolist()}, timeout=600)
    np.testing.assert_allclose(answer.json()["outputs"], trained().predict(X), rtol=1e-6)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 0
