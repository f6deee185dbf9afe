import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import elegy as eg

X = jax.ShapeDtypeStruct((8, 5), jnp.float32)


class Distribution:
    """Not a pytree; JAX could not return it."""

    def __init__(self, mean):
        self.mean = mean


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(not train)(nn.Dense(4)(x))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(3, name="head")(LinenBlock(name="block")(x, train))
        return {"y": x, "p": (Distribution(x), None)}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(5, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.block, self.head = Block(rngs), nnx.Linear(4, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.head(self.block(x)))


def haiku(x, is_training):
    return hk.Linear(3)(hk.BatchNorm(True, True, 0.9)(hk.nets.MLP([4, 4])(x), is_training))


def rows(text):
    """The cells of the table by layer."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {row[0]: row[1:] for row in cells[1:]}


def table(module, depth=2, variables=None):
    return rows(eg.Trainer(module, variables=variables).summary(X, depth=depth, return_repr=True))


def test_linen():
    found = table(Linen())
    assert found == {
        "(root)": ["Linen", "{y: float32[8,3], p: (Distribution, None)}", "", ""],
        "block": ["LinenBlock", "float32[8,4]", "", ""],
        "block/Dense_0": ["Dense", "float32[8,4]", "24 (96 B)", ""],
        "block/BatchNorm_0": ["BatchNorm", "float32[8,4]", "8 (32 B)", "8 (32 B)"],
        "head": ["Dense", "float32[8,3]", "15 (60 B)", ""],
        "Total": ["", "", "47 (188 B)", "8 (32 B)"],
    }


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_deeper_layers_count_for_the_one_above(depth):
    found = table(Linen(), depth)
    assert len(found) - 2 == {0: 0, 1: 2}.get(depth, 4)
    assert found["Total"][2:] == ["47 (188 B)", "8 (32 B)"]
    if depth == 1:
        assert found["block"][2:] == ["32 (128 B)", "8 (32 B)"]


def test_nnx_lists_are_not_layers():
    model = NNX(nnx.Rngs(0))
    found = table(model)
    assert list(found) == ["(root)", "block", "block/layers/0", "block/layers/1", "head", "dropout", "Total"]
    assert found["block/layers/1"] == ["BatchNorm", "float32[8,4]", "8 (32 B)", "8 (32 B)"]
    assert found["Total"][2] == "47 (188 B)"
    assert type(model.head) is nnx.Linear


def test_equinox_shapes_are_those_of_the_batch():
    found = table(eqx.nn.MLP(5, 3, 4, 1, key=jax.random.key(0)))
    assert found == {
        "(root)": ["MLP", "float32[8,3]", "", ""],
        "layers/0": ["Linear", "float32[8,4]", "24 (96 B)", ""],
        "layers/1": ["Linear", "float32[8,3]", "15 (60 B)", ""],
        "Total": ["", "", "39 (156 B)", "0"],
    }


def test_haiku():
    found = table(hk.transform_with_state(haiku))
    assert found["mlp/linear_0"] == ["Linear", "float32[8,4]", "24 (96 B)", ""]
    assert found["batch_norm"][:3] == ["BatchNorm", "float32[8,4]", "8 (32 B)"]
    assert found["linear"][2] == "15 (60 B)"
    assert found["Total"][2] == "67 (268 B)"


class Managed(eg.ElegyModule):
    scale: jax.Array = eg.field(default_factory=lambda: jnp.ones(3))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        raise AssertionError("a summary runs no step")


@pytest.mark.parametrize(
    ("module", "root"),
    [
        (Managed(), ["Managed", "", "", "3 (12 B)"]),
        (
            (lambda key, x: {"w": jnp.zeros((5, 3), jnp.bfloat16)}, lambda p, x: x.astype(jnp.bfloat16) @ p["w"]),
            ["FunctionalModule", "bfloat16[8,3]", "15 (30 B)", ""],
        ),
    ],
)
def test_what_cannot_be_looked_into_is_one_row(module, root):
    found = table(module)
    assert list(found) == ["(root)", "Total"]
    assert found["(root)"] == root


def test_nothing_is_computed_and_no_state_made():
    def never(x):
        raise AssertionError("the network ran")

    def apply(params, x):
        jax.debug.callback(never, x)
        return x * params["w"]

    trainer = eg.Trainer((lambda key: {"w": jnp.ones(5)}, apply))
    trainer.summary(X, return_repr=True)
    assert trainer.state.params is None


def test_the_summary_of_a_trained_state_does_not_change_it():
    trainer = eg.Trainer(nn.Dense(2), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    x, y = np.ones((8, 5), np.float32), np.ones((8, 2), np.float32)
    trainer.fit(x, y, verbose=0)
    before = trainer.state
    assert rows(trainer.summary(x, return_repr=True))["Total"][2] == "12 (48 B)"
    assert trainer.state is before


def test_it_is_printed_or_returned(capsys):
    trainer = eg.Trainer(nn.Dense(2))
    text = trainer.summary(X, return_repr=True)
    assert capsys.readouterr().out == ""
    assert trainer.summary(X) is None
    assert capsys.readouterr().out.strip() == text.strip()


@pytest.mark.parametrize("depth", [-1, 1.5, True])
def test_a_depth_is_a_whole_number(depth):
    with pytest.raises(ValueError, match="depth must be a whole number"):
        eg.Trainer(nn.Dense(2)).summary(X, depth=depth)
