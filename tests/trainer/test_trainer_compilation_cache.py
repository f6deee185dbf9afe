"""What one process compiled, the next one reads."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

RUN = """
import sys
import numpy as np, optax
import elegy as eg

x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
trainer = eg.Trainer(
    (lambda key, x: {"w": np.zeros((1, 1), np.float32)}, lambda params, x: x @ params["w"]),
    loss=eg.losses.MeanSquaredError(),
    optimizer=optax.sgd(0.1),
    compilation_cache=sys.argv[1],
)
print(trainer.fit(x, 3 * x, batch_size=8, epochs=2, verbose=0).history["loss"])
try:
    eg.Trainer(lambda: None, compilation_cache=sys.argv[1] + "-other")
except ValueError as error:
    print(error)
"""


def run(directory):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(directory)], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


def entries(directory):
    return {path.name for path in directory.iterdir() if not path.name.endswith("-atime")}


def test_a_second_process_compiles_nothing_anew(tmp_path):
    directory = tmp_path / "compiled"
    first = run(directory)
    kept = entries(directory)
    assert any("train_step" in name for name in kept)
    assert run(directory) == first
    assert entries(directory) == kept
    assert "this process keeps its compiled functions in" in first
    assert not (tmp_path / "compiled-other").exists()
