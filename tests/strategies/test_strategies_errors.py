"""Mistakes are told before anything is compiled."""

import re

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from strategy_table import MODELS, data

import elegy as eg
from elegy.strategies import FSDP, DataParallel, Eager, Jit, Sharded, Strategy, register_strategy, resolve_strategy

CONSTRUCTION = {
    "more devices than there are": (lambda: DataParallel(9), "needs 9 devices, but there are 8"),
    "no device": (lambda: DataParallel(0), "at least one device"),
    "a device twice": (lambda: DataParallel([jax.devices()[0]] * 2), "each once"),
    "a mesh of too many devices": (lambda: Sharded({"data": 4, "model": 4}), "needs 16 devices, but there are 8"),
    "a mesh that does not divide": (lambda: Sharded({"data": -1, "model": 3}), "8 devices cannot be divided by 3"),
    "two open sizes": (lambda: Sharded({"data": -1, "model": -1}), "only one axis"),
    "a size of zero": (lambda: FSDP({"data": 0}), "positive integers"),
    "an axis in rules that does not exist": (
        lambda: Sharded({"data": 2}, rules={"*/kernel": (None, "model")}),
        "names the mesh axis 'model', which does not exist. The mesh has the axes 'data'",
    ),
    "an axis twice": (
        lambda: Sharded({"data": 2, "model": 2}, rules={"*/kernel": ("model", "model")}),
        "names the mesh axis 'model' twice",
    ),
    "a data axis that does not exist": (lambda: FSDP({"data": 2}, data_axes=("rows",)), "axis 'rows' does not exist"),
    "a data axis twice": (lambda: FSDP({"data": 2}, data_axes=("data", "data")), "names the mesh axis 'data' twice"),
    "rules that are no pairs": (lambda: Sharded({"data": 2}, rules=[("*/kernel",)]), "pairs of a pattern"),  # type: ignore[list-item]
    "a pattern that is not a string": (lambda: Sharded({"data": 2}, rules={3: (None,)}), "pairs of a pattern"),  # type: ignore[dict-item]
    "a negative size": (lambda: FSDP({"data": 2}, min_size=-1), "must not be negative"),
    "a size that is not a number": (lambda: FSDP({"data": 2}, min_size="8"), "a number of elements"),  # type: ignore[arg-type]
    "devices by another name": (lambda: DataParallel("cpu"), "a list of JAX devices"),  # type: ignore[arg-type]
    "no mesh": (lambda: Sharded(4), "a dict of axis sizes"),
    "a rule without a tuple": (
        lambda: Sharded({"data": 1, "model": 2}, rules={"*/kernel": "model"}),
        "must give a tuple",
    ),
}


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_a_strategy_that_cannot_be_is_refused_when_it_is_made(case: str) -> None:
    make, message = CONSTRUCTION[case]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        make()


def test_numbers_of_devices_may_be_those_of_numpy() -> None:
    assert dict(Sharded({"data": np.int64(4), "model": np.int32(-1)}).mesh.shape) == {"data": 4, "model": 2}  # type: ignore[union-attr]
    assert DataParallel(np.int64(3)).replicas == 3  # type: ignore[arg-type]
    assert FSDP(min_size=np.int64(8)).min_size == 8  # type: ignore[arg-type]


STATES = {
    "a rule that matches nothing": (
        {"*/attention/*": (None, "model")},
        "the rule '*/attention/*' matches no parameter",
    ),
    "a rule with a slip": ({"Dense_7/kernel": (None, "model")}, "Did you mean 'params/Dense_"),
    "a rule of more dimensions": ({"*/bias": (None, "model")}, "it has 1 dimensions, but the rule has 2"),
    "a rule that does not divide": (
        {"Dense_1/kernel": ("model", None)},
        "dimension 0 of size 8 cannot be cut into 3 equal parts",
    ),
}


@pytest.mark.parametrize("case", STATES)
@pytest.mark.parametrize("kind", [Sharded, FSDP])
def test_rules_that_do_not_fit_the_state_are_refused_before_the_first_compile(case: str, kind: type) -> None:
    rules, message = STATES[case]
    x, y, _, _ = data("many")
    trainer = MODELS["mlp"].trainer(kind({"data": 2, "model": 3}, rules=rules))
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.fit(x, y, epochs=1, batch_size=8, verbose=0)
    assert set(trainer._session.executor.traces.values()) == {0}
    assert trainer.state.params is None


def test_a_refused_strategy_leaves_the_trainer_as_it_was() -> None:
    x, y, _, _ = data("many")
    trainer = MODELS["mlp"].trainer("jit")
    trainer.init_on_batch(x[:8], y[:8])
    before = trainer.state
    with pytest.raises(ValueError, match="matches no parameter"):
        trainer.set_strategy(Sharded({"data": 2, "model": 2}, rules={"nothing": ("model",)}))
    assert trainer.state is before
    assert trainer.strategy == Jit()


def test_the_registry_knows_five_strategies_and_the_users_own() -> None:
    kinds = {name: type(resolve_strategy(name)) for name in ("eager", "jit", "data_parallel", "sharded", "fsdp")}
    assert list(kinds.values()) == [Eager, Jit, DataParallel, Sharded, FSDP]
    register_strategy("first_two_devices", lambda: DataParallel(2))
    assert resolve_strategy("first_two_devices").replicas == 2
    with pytest.raises(ValueError, match="exists already"):
        register_strategy("first_two_devices", Jit)
    with pytest.raises(TypeError, match="function without arguments"):
        register_strategy("other", Jit())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name of a strategy must be a string"):
        register_strategy(Jit, Jit)  # type: ignore[arg-type]
    register_strategy("no_strategy", dict)
    with pytest.raises(TypeError, match="'no_strategy' must return"):
        resolve_strategy("no_strategy")
    with pytest.raises(ValueError, match="Did you mean 'sharded'"):
        eg.Trainer(MODELS["mlp"].make(), strategy="shraded")
    with pytest.raises(TypeError, match=r"pass an instance, `FSDP\(\)`"):
        resolve_strategy(FSDP)


@pytest.mark.parametrize(
    ("name", "meant"), [("dp", "data_parallel"), ("DDP", "data_parallel"), ("zero-3", "fsdp"), ("mesh", "sharded")]
)
def test_what_other_libraries_call_a_strategy_is_known(name, meant):
    with pytest.raises(ValueError, match=f"unknown strategy {name!r}. Did you mean {meant!r}"):
        resolve_strategy(name)


@pytest.mark.parametrize("make", [DataParallel, Sharded, FSDP, lambda: FSDP({"data": 4, "model": 2}, min_size=2)])
def test_strategies_are_values(make) -> None:
    assert make() == make()
    assert hash(make()) == hash(make())
    assert isinstance(make(), Strategy)
    assert "Mesh" in repr(make()) or "devices" in repr(make())


def test_a_mesh_with_explicit_axes_is_taken_as_one_with_automatic_axes() -> None:
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    assert Sharded(mesh).mesh == Mesh(np.array(mesh.devices), ("data", "model"))


def test_the_axes_that_no_rule_names_divide_the_data() -> None:
    rules = {"*/kernel": (None, "model")}
    assert Sharded({"data": 4, "model": 2}, rules=rules).axes == ("data",)
    assert Sharded({"data": 4, "model": 2}).axes == ("data", "model")
    assert FSDP({"replica": 2, "data": 2, "model": 2}, rules=rules).replicas == 4


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("strategy", ["jit", "data_parallel", "sharded", "fsdp"])
def test_a_mesh_that_is_set_is_refused_or_does_not_matter(strategy, axis_type) -> None:
    x, y = np.ones((8, 3), np.float32), np.arange(8) % 2

    def losses() -> list[float]:
        trainer = eg.Trainer(nn.Dense(2), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1), strategy=strategy)
        return trainer.fit(x, y, batch_size=8, epochs=2, verbose=0).history["loss"]

    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(axis_type,))):
        if axis_type == AxisType.Auto and strategy in ("sharded", "fsdp"):
            within = losses()
        else:
            with pytest.raises(RuntimeError, match=r"a mesh is set around this call.*Sharded\(mesh\)"):
                losses()
            return
    np.testing.assert_allclose(within, losses(), rtol=1e-6)
