"""A live state moves between strategies and keeps its values."""

import copy
import pickle

import jax
import numpy as np
import pytest
from strategy_table import MODELS, data

import elegy as eg
from elegy.strategies import FSDP, DataParallel, Jit, Sharded

MOVES = [
    lambda: DataParallel(8),
    lambda: "jit",
    lambda: FSDP({"data": 4}, min_size=8),
    lambda: Sharded({"data": 2, "model": 2}, rules={"*/kernel": (None, "model")}),
    lambda: "eager",
    lambda: Jit(jax.devices()[5]),
    lambda: FSDP({"data": 2, "model": 4}, min_size=8, rules={"*/kernel": (None, "model")}),
]


@pytest.mark.slow
def test_a_live_state_moves_and_the_run_goes_on_as_if_it_had_not() -> None:
    x, y, _, _ = data("many")
    still, moving = MODELS["mlp"].trainer("jit"), MODELS["mlp"].trainer("jit")
    for trainer in (still, moving):
        trainer.fit(x, y, epochs=1, batch_size=16, verbose=0)
    for strategy in MOVES:
        before = jax.tree.map(_host, moving.state)
        moving.set_strategy(strategy())
        assert jax.tree.structure(moving.state) == jax.tree.structure(before)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(_host, moving.state), before)
        for trainer in (still, moving):
            trainer.fit(x, y, epochs=1, batch_size=16, verbose=0)
        # Sums over devices are taken in another order.
        np.testing.assert_allclose(moving.history.history["loss"], still.history.history["loss"], rtol=1e-4)


def _host(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


@pytest.mark.parametrize("strategy", [lambda: DataParallel(4), lambda: FSDP({"data": 4}, min_size=8)])
def test_a_state_that_was_handed_out_stays_valid(strategy) -> None:
    x, y, _, _ = data("many")
    trainer = MODELS["mlp"].trainer(strategy())
    trainer.fit(x, y, epochs=1, batch_size=16, verbose=0)
    held = trainer.state
    values = jax.tree.map(np.array, held.params)
    trainer.fit(x, y, epochs=1, batch_size=16, verbose=0)
    jax.tree.map(np.testing.assert_array_equal, held.params, values)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), jax.tree.map(np.array, trainer.state.params), values)
    assert max(jax.tree.leaves(moved)) > 0


def test_a_fully_sharded_state_shows_logical_shapes_and_lies_in_parts() -> None:
    x, y, _, _ = data("many")
    trainer = MODELS["mlp"].trainer(FSDP({"data": 4}, min_size=8))
    trainer.fit(x, y, epochs=2, batch_size=16, verbose=0)
    moments = trainer.state.optimizer.state[0]
    for tree in (trainer.state.params, moments.mu, moments.nu):
        kernel = tree["Dense_1"]["kernel"]
        assert kernel.shape == (8, 12)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 3)}


@pytest.mark.parametrize("make", [lambda: DataParallel(3), lambda: FSDP({"data": 2, "model": 2}, min_size=8)])
def test_a_trainer_on_several_devices_can_be_pickled_and_copied(make, tmp_path) -> None:
    x, y, _, _ = data("many")
    trainer = MODELS["mlp"].trainer(make())
    trainer.fit(x, y, epochs=1, batch_size=8, verbose=0)
    trainer.save_pickle(tmp_path / "trainer.pickle")
    loaded, copied = eg.load(tmp_path / "trainer.pickle", allow_code=True), copy.deepcopy(trainer)
    expected = trainer.fit(x, y, epochs=1, batch_size=8, verbose=0).history
    for other in (loaded, copied):
        assert other.strategy == trainer.strategy
        assert other.fit(x, y, epochs=1, batch_size=8, verbose=0).history == expected


@pytest.mark.parametrize("strategy", [DataParallel(8), Sharded({"data": 8}), Jit(jax.devices()[5])], ids=repr)
def test_a_pickled_strategy_whose_devices_are_missing_becomes_jit(strategy, monkeypatch) -> None:
    saved = pickle.dumps(strategy)
    assert pickle.loads(saved) == strategy
    few = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: few)
    with pytest.warns(UserWarning, match="which is not among the .* devices here: Jit takes its place"):
        assert pickle.loads(saved) == Jit()
