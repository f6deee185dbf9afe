"""The exported prediction step computes what predict computes, without Elegy and without the user's class."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import Core, High, Managed, regression

import elegy as eg
from elegy.errors import CheckpointError

SIZES = (1, 3, 22)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32; a kernel for any batch size may sum in another order

RUN = """
import sys
import jax, numpy as np
from jax import export
folder = sys.argv[1]
predict = export.deserialize(bytearray(open(folder + "/pred_step.jax_export", "rb").read())).call
for size in sys.argv[2:]:
    inputs = dict(np.load(f"{folder}/inputs_{size}.npz"))
    outputs = predict(inputs if "x" not in inputs else inputs["x"])
    np.savez(f"{folder}/outputs_{size}.npz", **(outputs if isinstance(outputs, dict) else {"x": outputs}))
assert "elegy" not in sys.modules
"""


def run_elsewhere(folder, inputs):
    """Calls the exported function in a process of its own, which cannot find Elegy."""
    for size in SIZES:
        rows = jax.tree.map(lambda leaf, size=size: leaf[:size], inputs)
        np.savez(folder / f"inputs_{size}.npz", **(rows if isinstance(rows, dict) else {"x": rows}))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", RUN, str(folder), *map(str, SIZES)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {size: dict(np.load(folder / f"outputs_{size}.npz")) for size in SIZES}


class Net(nn.Module):
    """Batch statistics, dropout, and outputs in a dict."""

    @nn.compact
    def __call__(self, a, b, training):
        x = nn.BatchNorm(use_running_average=not training)(nn.Dense(4)(jnp.concatenate([a, b], axis=-1)))
        x = nn.Dropout(0.5, deterministic=not training)(x)
        return {"scores": x, "sum": x.sum(axis=-1)}


def linen_trainer():
    def loss(target, preds):
        return jnp.mean((preds["sum"] - target[:, 0]) ** 2)

    return eg.Trainer(Net(), loss=loss, optimizer=optax.adam(0.1))


@pytest.mark.parametrize("module", [High, Managed, "linen"])
def test_the_function_equals_predict_on_several_batch_sizes(tmp_path, module):
    x, y = regression()
    if module == "linen":
        trainer, inputs = linen_trainer(), {"a": x, "b": 2 * x}
    else:
        loss = eg.losses.MeanSquaredError() if module is High else None
        trainer, inputs = eg.Trainer(module(), loss=loss, optimizer=optax.adam(0.1)), x
    trainer.fit(inputs, y, epochs=2, batch_size=8, verbose=0)
    before = jax.tree.leaves(trainer.state.params)
    trainer.export(tmp_path, jax.tree.map(lambda leaf: leaf[:4], inputs))
    for size, found in run_elsewhere(tmp_path, inputs).items():
        rows = jax.tree.map(lambda leaf, size=size: leaf[:size], inputs)
        wanted = trainer.predict(rows, batch_size=size)
        wanted = wanted if isinstance(wanted, dict) else {"x": wanted}
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, **CLOSE)
    for old, new in zip(before, jax.tree.leaves(trainer.state.params), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_manifest_describes_the_function(tmp_path):
    x, y = regression()
    trainer = eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    trainer.init_on_batch(x, y)
    trainer.export(tmp_path, jax.ShapeDtypeStruct((7, 3), jnp.float32), platforms=("cpu", "cuda", "tpu"))
    manifest = json.loads((tmp_path / "export.json").read_bytes())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["inputs"] == {"(root)": {"dtype": "float32", "shape": ["b", 3]}}
    assert manifest["outputs"] == {"(root)": {"dtype": "float32", "shape": ["b", 2]}}
    exported = jax.export.deserialize(bytearray((tmp_path / manifest["function"]).read_bytes()))
    np.testing.assert_allclose(exported.call(x[:5]), trainer.predict(x[:5]), **CLOSE)


def test_one_platform_may_be_given_by_its_name(tmp_path):
    x, _ = regression()
    eg.Trainer(High()).export(tmp_path, x[:4], platforms="cpu")
    assert json.loads((tmp_path / "export.json").read_bytes())["platforms"] == ["cpu"]


def test_a_trainer_that_was_not_trained_makes_its_state_from_the_inputs(tmp_path):
    x, _ = regression()
    trainer = eg.Trainer(High())
    trainer.export(tmp_path, x[:4])
    exported = jax.export.deserialize(bytearray((tmp_path / "pred_step.jax_export").read_bytes()))
    np.testing.assert_allclose(exported.call(x), trainer.predict(x), **CLOSE)


class FixedRows(High):
    def apply(self, key, inputs, training):
        return super().apply(key, jnp.stack([inputs[i] for i in range(inputs.shape[0])]), training)


class CountsRows(High):
    def apply(self, key, inputs, training):
        return super().apply(key, inputs / len(inputs), training)


class Odd(eg.Pytree):
    value: jax.Array


class OddOutputs(High):
    def apply(self, key, inputs, training):
        return Odd(super().apply(key, inputs, training)[0]), self


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (FixedRows(), np.ones((4, 3), np.float32), "cannot be exported for every batch size"),
        (CountsRows(), np.ones((4, 3), np.float32), r"write `x.shape\[0\]` in place of `len\(x\)`"),
        (OddOutputs(), np.ones((4, 3), np.float32), "containers that only your program knows"),
        (High(), {"x": np.ones((4, 3), np.float32), "n": jnp.ones(())}, r"one row an example, but they are n: float32"),
    ],
)
def test_what_cannot_be_exported_is_said(tmp_path, module, inputs, message):
    trainer = eg.Trainer(module)
    trainer.init_on_batch(np.ones((4, 3), np.float32))
    with pytest.raises(CheckpointError, match=message):
        trainer.export(tmp_path / "export", inputs)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("library", "method", "how"),
    [("flatbuffers", "export", r"elegy\[export\]"), ("tensorflow", "export_saved_model", "pip install tensorflow")],
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, library, method, how):
    monkeypatch.setitem(sys.modules, library, None)
    trainer = eg.Trainer(High())
    with pytest.raises(ImportError, match=f"needs the library '{library}': install it with .*{how}"):
        getattr(trainer, method)(tmp_path, np.ones((4, 3), np.float32))


def tensorflow_reads_jax(path):
    """Whether a function that `jax2tf` converted by hand, with a free batch size, runs in this TensorFlow."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    module = tf.Module()
    function = jax2tf.convert(lambda x: x + 1, polymorphic_shapes=["(b,)"], with_gradient=False)
    module.f = tf.function(function, autograph=False, input_signature=[tf.TensorSpec((None,), tf.float32)])
    tf.saved_model.save(module, str(path))
    try:
        return bool((tf.saved_model.load(str(path)).f(np.ones(2, np.float32)).numpy() == 2).all())
    except tf.errors.OpError:
        return False


@pytest.mark.needs(library="tensorflow")
def test_saved_model(tmp_path):
    """It gives what `predict` gives, wherever TensorFlow can read JAX's programs; elsewhere nothing is written."""
    import tensorflow as tf

    x, y = regression()
    trainer = eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    trainer.fit(x, y, batch_size=8, verbose=0)
    if not tensorflow_reads_jax(tmp_path / "by_hand"):
        with pytest.raises(CheckpointError, match=f"TensorFlow {tf.__version__} cannot read"):
            trainer.export_saved_model(tmp_path / "export", x[:4])
        assert not (tmp_path / "export").exists()
        return
    trainer.export_saved_model(tmp_path / "export", x[:4])
    function = tf.saved_model.load(str(tmp_path / "export")).f
    for size in SIZES:
        np.testing.assert_allclose(function(x[:size]).numpy(), trainer.predict(x[:size]), **CLOSE)


def test_a_core_level_prediction_is_exported_too(tmp_path):
    x, y = regression()
    trainer = eg.Trainer(Core())
    trainer.init_on_batch(x, y)
    trainer.export(tmp_path, x[:4])
    exported = jax.export.deserialize(bytearray((tmp_path / "pred_step.jax_export").read_bytes()))
    np.testing.assert_allclose(exported.call(x), trainer.predict(x), **CLOSE)
