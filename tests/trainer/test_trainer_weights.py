"""Weights from elsewhere and for elsewhere; a whole trainer in one file."""

from __future__ import annotations

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, regression
from safetensors.numpy import load_file, save_file

import elegy as eg
from elegy.checkpoint import flatten
from elegy.errors import CheckpointError

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32; predict compiles what the reference runs operation by operation


class Net(nn.Module):
    heads: int = 2

    @nn.compact
    def __call__(self, x, training):
        x = nn.BatchNorm(use_running_average=not training, name="norm")(nn.Dense(4, name="encoder")(x))
        return nn.Dense(self.heads, name="head")(x)


def haiku_net(x, is_training):
    x = hk.BatchNorm(True, True, 0.9, name="norm")(hk.Linear(4, name="encoder")(x), is_training)
    return hk.Linear(2, name="head")(x)


def trainer_of(kind="linen", heads=2, seed=0):
    module = Net(heads) if kind == "linen" else hk.transform_with_state(haiku_net)
    return eg.Trainer(module, loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), seed=seed)


def trained(kind="linen"):
    x, y = regression()
    trainer = trainer_of(kind)
    trainer.fit(x, y, epochs=2, batch_size=8, verbose=0)
    return trainer


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


FORMS = ("file.safetensors", "weights", "checkpoint", "variables", "by path")


@pytest.mark.parametrize(
    ("kind", "begun", "form"),
    [(kind, (i + j) % 2 == 1, form) for i, kind in enumerate(("linen", "haiku")) for j, form in enumerate(FORMS)],
)
@pytest.mark.some(5, also=["haiku-False-variables"])
def test_weights_move_to_another_trainer(tmp_path, kind, begun, form):
    x, y = regression()
    source = trained(kind)
    if form == "variables":
        given = source.variables()
    elif form == "by path":
        given = {k: v for k, v in flatten(source.state).items() if k.partition("/")[0] in WEIGHTS}
    else:
        given = tmp_path / form
        (source.save if form == "checkpoint" else source.save_weights)(given)
    target = trainer_of(kind, seed=5)
    if begun:
        target.init_on_batch(x, y)
    target.load_weights(given)
    np.testing.assert_array_equal(target.predict(x), source.predict(x))
    assert_equal(target.variables(), source.variables())
    assert (target.step, target.epoch) == (0, 0)
    assert_equal(target.state.optimizer.state, target.state.optimizer.tx.init(target.state.params))


WEIGHTS = ("params", "batch_stats", "counters")


def test_a_linen_modules_variables_are_those_of_its_own_apply():
    x, _ = regression()
    trainer = trained()
    np.testing.assert_allclose(Net().apply(trainer.variables(), x, False), trainer.predict(x), **CLOSE)


def test_a_haiku_functions_variables_are_those_of_its_own_apply():
    x, _ = regression()
    trainer = trained("haiku")
    params, state = trainer.variables()
    outputs, _ = hk.transform_with_state(haiku_net).apply(params, state, None, x, False)
    np.testing.assert_allclose(outputs, trainer.predict(x), **CLOSE)


def test_other_modules_have_their_fields():
    trainer = eg.Trainer(High())
    trainer.init_on_batch(np.ones((2, 3), np.float32))
    assert_equal(trainer.variables(), {"params": trainer.state.params})


def test_safetensors_hold_the_weights_by_path(tmp_path):
    trainer = trained()
    trainer.save_weights(tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    wanted = flatten({"params": trainer.state.params, "batch_stats": trainer.state.batch_stats})
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_subtree_alone_is_taken(tmp_path):
    x, y = regression()
    source, target = trained(), trainer_of(heads=3, seed=3)
    source.save(tmp_path / "run")
    target.init_on_batch(x, y)
    before = target.state.params
    target.load_weights(tmp_path / "run", prefix="params/encoder")
    assert_equal(target.state.params["encoder"], source.state.params["encoder"])
    assert_equal(target.state.params["head"], before["head"])
    assert_equal(target.state.params["norm"], before["norm"])


def test_parameters_alone_are_taken(tmp_path):
    x, y = regression()
    source, target = trained(), trainer_of(seed=3)
    source.save(tmp_path / "run")
    target.init_on_batch(x, y)
    stats = target.state.batch_stats
    target.load_weights(tmp_path / "run", prefix="params")
    assert_equal(target.state.params, source.state.params)
    assert_equal(target.state.batch_stats, stats)


@pytest.mark.parametrize(
    "rename", [{"model/backbone": "params/encoder"}, lambda p: p.replace("model/backbone", "params/encoder")]
)
@pytest.mark.parametrize("form", ["file", "dict"])
def test_names_of_other_libraries_are_renamed(tmp_path, rename, form):
    x, y = regression()
    kernel = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)
    theirs = {"model/backbone/kernel": kernel, "model/backbone/bias": bias}
    save_file(theirs, tmp_path / "theirs.safetensors")
    target = trainer_of()
    target.init_on_batch(x, y)
    source = theirs if form == "dict" else tmp_path / "theirs.safetensors"
    target.load_weights(source, prefix="model/backbone", rename=rename)
    assert_equal(target.variables()["params"]["encoder"], {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)})


def test_what_does_not_fit_is_listed_and_nothing_is_changed(tmp_path):
    x, y = regression()
    target = trainer_of(heads=3)
    target.init_on_batch(x, y)
    before = target.state
    given = {"params": jax.tree.map(np.asarray, trained().state.params)}
    del given["params"]["norm"]["bias"]
    given["params"]["encoder"]["extra"] = np.ones(2, np.float32)
    given["params"]["encoder"]["bias"] = np.ones(4, np.float16)
    with pytest.raises(CheckpointError) as error:
        target.load_weights(given)
    for line in (
        "params/encoder/bias: array float16[4] in the file, array float32[4] in the target",
        "params/encoder/extra: unexpected",
        "params/head/kernel: array float32[4,2] in the file, array float32[4,3] in the target",
        "params/norm/bias: missing",
        "`trainer.load_weights(source, strict=False)` loads what fits",
    ):
        assert line in str(error.value)
    assert target.state is before
    with pytest.warns(UserWarning, match="params/head/kernel"):
        target.load_weights(given, strict=False)
    np.testing.assert_array_equal(target.state.params["norm"]["scale"], given["params"]["norm"]["scale"])
    assert_equal(target.state.params["head"], before.params["head"])


def test_the_optimizer_of_a_run_under_way_stays():
    x, y = regression()
    target = trained()
    moments, step, key = target.state.optimizer.state, target.step, jax.random.key_data(target.state.key)
    target.load_weights(jax.tree.map(jnp.zeros_like, target.variables()))
    assert_equal(target.state.optimizer.state, moments)
    np.testing.assert_array_equal(jax.random.key_data(target.state.key), key)
    assert target.step == step == 6
    target.fit(x, y, batch_size=8, verbose=0)


def test_a_deferred_checkpoint_is_restored_before_deferred_weights(tmp_path):
    x, _ = regression()
    source = trained()
    source.save(tmp_path / "run")
    target = trainer_of(seed=7)
    target.restore(tmp_path / "run")
    target.load_weights({"params/head/bias": np.full(2, 9, np.float32)}, prefix="params/head/bias")
    target.predict(x)
    assert target.step == source.step
    np.testing.assert_array_equal(target.state.params["head"]["bias"], [9, 9])
    assert_equal(target.state.params["encoder"], source.state.params["encoder"])


def test_the_next_load_takes_the_place_of_one_that_was_refused(tmp_path):
    x, _ = regression()
    source, wider = trained(), trainer_of(heads=3)
    encoder = {"params/encoder/bias": np.full(4, 5, np.float32)}
    wider.load_weights(encoder, prefix="params/encoder/bias")
    wider.load_weights(source.variables())
    for _ in range(2):  # it is not forgotten: a cell of a notebook that is run again trains from no other values
        with pytest.raises(CheckpointError, match=r"(?s)params/head/kernel.*array float32\[4,2\]") as error:
            wider.predict(x)
        assert "takes its place" in error.value.__notes__[0]
        assert wider.step == 0
    wider.load_weights({"params/head/bias": np.full(3, 7, np.float32)}, prefix="params/head/bias")
    wider.predict(x)
    np.testing.assert_array_equal(wider.state.params["head"]["bias"], [7, 7, 7])
    np.testing.assert_array_equal(wider.state.params["encoder"]["bias"], [5, 5, 5, 5])  # accepted before


def test_a_checkpoint_takes_the_place_of_weights_that_were_refused_and_weights_of_a_checkpoint(tmp_path):
    x, _ = regression()
    narrow, wide = trained(), trainer_of(heads=3, seed=3)
    wide.init_on_batch(x)
    narrow.save(tmp_path / "narrow")
    wide.save(tmp_path / "wide")
    one, other = trainer_of(heads=3), trainer_of(heads=3)
    one.load_weights(narrow.variables())
    other.restore(tmp_path / "narrow")
    for trainer in (one, other):
        with pytest.raises(CheckpointError, match="params/head/kernel"):
            trainer.predict(x)
    one.restore(tmp_path / "wide")
    other.load_weights(tmp_path / "wide")
    for trainer in (one, other):
        trainer.predict(x)
        assert_equal(trainer.variables(), wide.variables())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, d: eg.Trainer(High()).save_weights(d / "w"), "there are no weights to save yet"),
        (lambda t, d: t.load_weights(d / "nothing"), "there is no such checkpoint"),
        (lambda t, d: t.load_weights([1, 2]), "the weights are a list"),
        *(
            (
                lambda t, d, name=name: (_written(d / name), t.load_weights(d / name)),
                rf"{name} is no safetensors.*{how}",
            )
            for name, how in (("w.npz", r"dict\(numpy.load\(file\)\)"), ("w.msgpack", "msgpack_restore"))
        ),
        (lambda t, d: (_written(d / "w.safetensors"), t.load_weights(d / "w.safetensors")), "cannot be read as"),
        (lambda t, d: t.load_weights({"step": np.ones(1)}), "step: unexpected"),
        (lambda t, d: t.load_weights({}), "no weights in what was given. The state has: params/w|params/b"),
        (lambda t, d: t.load_weights({"params": {"w": 1}}, prefix="weights"), "At the top there are: params"),
    ],
)
def test_mistakes_are_said(tmp_path, call, message):
    trainer = eg.Trainer(High())
    trainer.init_on_batch(np.ones((2, 3), np.float32))
    with pytest.raises(CheckpointError, match=message):
        call(trainer, tmp_path)


def _written(path):
    path.write_bytes(b"something else")


@pytest.mark.parametrize("parts", [("encoder", "head", "norm"), ("head",)])
def test_the_error_for_parameters_without_their_collection_says_to_wrap_them(parts):
    trainer = trained()
    params = {name: trainer.variables()["params"][name] for name in parts}
    with pytest.raises(CheckpointError, match=r'lie within the collection params: wrap it.*{"params": params}'):
        trainer.load_weights(params)
    trainer.load_weights({"params": trainer.variables()["params"]})


def test_a_whole_trainer_in_one_file(tmp_path):
    x, y = regression()
    trainer = trained()
    trainer.save_pickle(tmp_path / "trainer.pkl")
    with pytest.raises(CheckpointError, match="allow_code=True"):
        eg.load(tmp_path / "trainer.pkl")
    other = eg.load(tmp_path / "trainer.pkl", allow_code=True)
    assert (other.step, other.epoch, other.seed) == (trainer.step, trainer.epoch, trainer.seed)
    assert other.history.history == trainer.history.history
    for each in (trainer, other):
        each.fit(x, y, epochs=2, batch_size=8, verbose=0)
    assert other.history.history == trainer.history.history
    assert_equal(other.variables(), trainer.variables())


def test_what_the_source_lacks_is_an_error_before_a_state_exists(tmp_path):
    trained().save_weights(tmp_path / "weights")
    fresh = trainer_of()
    with pytest.raises(CheckpointError, match="nothing lies below 'params/encodre'"):
        fresh.load_weights(tmp_path / "weights", prefix="params/encodre")
    with pytest.raises(CheckpointError, match="decoder"):
        fresh.load_weights(tmp_path / "weights", rename={"params/decoder": "params/encoder"})
    with pytest.raises(TypeError, match=r"prefix must be one path.*not \['params/encoder', 'params/head'\]"):
        fresh.load_weights(tmp_path / "weights", prefix=["params/encoder", "params/head"])
    fresh.fit(*regression(), verbose=0)  # nothing is held


def test_weights_that_do_not_fit_are_named_with_their_file(tmp_path):
    x, y = regression()
    file = tmp_path / "weights.safetensors"
    trained().save_weights(file)
    tree = {"params": {"head": {"kernel": np.ones((4, 1), np.float32)}}}
    for source, name in ((file, r"weights\.safetensors"), (tree, "the given tree")):
        other = trainer_of(heads=3)
        other.load_weights(source)  # held until the first batch has made a state
        with pytest.raises(CheckpointError, match=f"{name} does not match the target"):
            other.init_on_batch(x, y)
