"""An ONNX model computes what predict computes; one that would not is never written.

The first conversion imports all of jax2onnx, which takes long.
"""

from __future__ import annotations

import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, regression

import elegy as eg
from elegy.errors import CheckpointError

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # other kernels


class Net(nn.Module):
    """An embedding of integers, batch statistics, dropout, outputs in a dict with the name of an input."""

    @nn.compact
    def __call__(self, a, ids, training):
        x = jnp.concatenate([a, nn.Embed(5, 4)(ids)], axis=-1)
        x = nn.BatchNorm(use_running_average=not training)(nn.Dense(4, name="body")(x))
        x = nn.Dropout(0.5, deterministic=not training)(jnp.tanh(x))
        return {"a": nn.Dense(2, name="head")(x), "sum": x.sum(axis=-1)}


def run(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, inputs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_the_model_equals_predict_on_several_batch_sizes(tmp_path, lora, capsys):
    x, y = regression()
    inputs = {"a": x, "ids": (np.arange(22) % 5).astype(np.int32)}
    module = eg.LoRA(Net(), "body/*", rank=1) if lora else Net()
    trainer = eg.Trainer(module, lambda target, preds: jnp.mean((preds["a"] - target) ** 2), optimizer=optax.adam(0.1))
    trainer.fit(inputs, y, batch_size=8, verbose=0)
    capsys.readouterr()
    trainer.export_onnx(tmp_path / "model.onnx", jax.tree.map(lambda leaf: leaf[:4], inputs))
    assert capsys.readouterr().out == ""
    for size in (1, 5, 22):
        rows = jax.tree.map(lambda leaf, size=size: leaf[:size], inputs)
        found, wanted = run(tmp_path / "model.onnx", rows), trainer.predict(rows)
        np.testing.assert_allclose(found["a_out"], wanted["a"], **CLOSE)
        np.testing.assert_allclose(found["sum"], wanted["sum"], **CLOSE)


class Dropping(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __call__(self, x, key):
        return self.linear(self.dropout(x, key=key))


def dropping(x, training):
    return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.5 if training else 0.0, x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        Dropping(eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.nn.Dropout(0.5)),
        hk.transform(dropping),
    ],
    ids=["equinox", "haiku"],
)
def test_keys_of_a_dropout_that_is_off_are_not_exported(tmp_path, module):
    x = regression()[0]
    trainer = eg.Trainer(module)
    trainer.init_on_batch(x)
    trainer.export_onnx(tmp_path / "model.onnx", x[:4])
    for size in (1, 5, 22):
        found = run(tmp_path / "model.onnx", {"inputs": x[:size]})["outputs"]
        np.testing.assert_allclose(found, trainer.predict(x[:size]), **CLOSE)


class Odd(High):
    def apply(self, key, inputs, training):
        return jax.lax.linalg.svd(inputs, compute_uv=False), self


@pytest.mark.slow
def test_what_cannot_be_exported_is_not_written(tmp_path, monkeypatch):
    x, _ = regression()
    with pytest.raises(CheckpointError, match=r"Odd's prediction step cannot be exported as an ONNX model"):
        eg.Trainer(Odd()).export_onnx(tmp_path / "model.onnx", x)
    trainer = eg.Trainer(High())
    trainer.export_onnx(tmp_path / "good.onnx", x)
    np.testing.assert_allclose(run(tmp_path / "good.onnx", {"inputs": x})["outputs"], trainer.predict(x), **CLOSE)
    import jax2onnx

    convert = jax2onnx.to_onnx
    monkeypatch.setattr(jax2onnx, "to_onnx", lambda f, *a, **k: convert(lambda x: [f(x)[0] + 1], *a, **k))
    with pytest.raises(
        CheckpointError, match=r"computes something else, so it was not written:\n  outputs, for 1 rows"
    ):
        trainer.export_onnx(tmp_path / "model.onnx", x)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("library", ["jax2onnx", "onnxruntime"])
def test_a_missing_library_is_named(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, "jax2onnx", sys.modules[__name__])  # the real one takes long to import
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"needs the library '{library}': install it with .*elegy\[onnx\]"):
        eg.Trainer(High()).export_onnx(tmp_path / "model.onnx", np.ones((4, 3), np.float32))
