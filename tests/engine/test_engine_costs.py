"""The counted operations of a training step, against counts by hand."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from some_cases import some

import elegy as eg
from elegy.strategies import Jit

F32, I32 = jnp.float32, jnp.int32


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(10)(x)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2, padding="VALID")(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        return x + nn.Dense(128)(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    rolled: bool
    blocks: int = 3

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(256, 128)(tokens)
        if self.rolled:
            block = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = block()(x, None)
        else:
            for _ in range(self.blocks):
                x, _ = Block()(x, None)
        return nn.Dense(256)(x)


def mlp(rows):
    """Each product runs forward, for the gradient of the weights, and for that of its input if that has parameters."""
    sizes = [64, 256, 256, 256, 10]
    products = [2 * rows * a * b for a, b in itertools.pairwise(sizes)]
    return 3 * sum(products) - products[0]


def conv_net(rows):
    """Only products with a pixel of the image count: 3 n - 2 of the 3 n along an axis of n pixels with padding 1."""
    first = 2 * rows * (3 * 28 - 2) ** 2 * 3 * 32
    second, dense = 2 * rows * 13**2 * 9 * 32 * 64, 2 * rows * 13**2 * 64 * 10
    return 3 * (first + second + dense) - first


def transformer(rows, length=64, blocks=3):
    tokens = rows * length
    block = 2 * tokens * (4 * 128 * 128 + 2 * 128 * 512) + 2 * 2 * rows * length**2 * 128
    return 3 * (blocks * block + 2 * tokens * 128 * 256)


CASES = {
    "mlp": (MLP(), ((1024, 64), F32), ((1024,), I32), mlp(1024)),
    "conv net": (ConvNet(), ((64, 28, 28, 3), F32), ((64,), I32), conv_net(64)),
    "transformer": (Transformer(False), ((64, 64), I32), ((64, 64), I32), transformer(64)),
    "transformer with a scan over its blocks": (Transformer(True), ((64, 64), I32), ((64, 64), I32), transformer(64)),
}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.some(5)
def test_operations_are_those_of_a_count_by_hand(case, accumulate):
    module, x, y, expected = CASES[case]
    trainer = eg.Trainer(module, eg.losses.CrossEntropy(), optimizer=optax.sgd(1e-3), accumulate=accumulate)
    batch = tuple(jax.ShapeDtypeStruct(*spec) for spec in (x, y))
    session = trainer._session
    program = session.executor.program("train", session.planned(batch), batch, None)
    assert program.flops == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("strategy", some(["jit", "data_parallel", "sharded", "fsdp"], 2))
def test_the_last_step_of_a_trainer_has_its_operations(strategy):
    trainer = eg.Trainer(MLP(), eg.losses.CrossEntropy(), optimizer=optax.sgd(1e-3), strategy=strategy)
    with pytest.raises(RuntimeError, match="no compiled training step has run"):
        _ = trainer.step_flops
    x, y = np.zeros((512, 64), np.float32), np.zeros(512, int)
    trainer.fit(x, y, batch_size=512, verbose=0)
    assert trainer.step_flops == pytest.approx(mlp(512), rel=0.05)


@pytest.fixture
def executables(monkeypatch):
    """The executables of the training steps that run, compiled as they are called."""
    found, compile_ = [], Jit.compile

    def compiled(self, step, args, **options):
        kernel = compile_(self, step, args, **options)
        if not kernel.__name__.startswith("train"):
            return kernel

        def call(*arguments):
            found.append(kernel.lower(*arguments).compile())
            return found[-1](*arguments)

        call.lower = kernel.lower
        return call

    monkeypatch.setattr(Jit, "compile", compiled)
    return found


def peak(executable):
    """The compiler's sum of arguments, results that take no buffer of an argument, and temporaries."""
    memory = executable.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def by_hand(module, x, y):
    """The executable of a step as a careful user writes it: jitted, with a donated state."""
    tx = optax.sgd(1e-3, momentum=0.9)

    def step(state, x, y):
        params, opt_state = state
        logits = lambda params: module.apply({"params": params}, x)  # noqa: E731
        mean = lambda params: optax.softmax_cross_entropy_with_integer_labels(logits(params), y).mean()  # noqa: E731
        loss, grads = jax.value_and_grad(mean)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def init(key, x):
        params = module.init(key, x)["params"]
        return params, tx.init(params)

    state = jax.eval_shape(init, jax.random.key(0), x)
    return jax.jit(step, donate_argnums=0).lower(state, x, y).compile()


THREE = {
    "mlp": CASES["mlp"],
    "conv net": CASES["conv net"],
    "transformer": (Transformer(False, 1), ((16, 64), I32), ((16, 64), I32), transformer(16, blocks=1)),
}


@pytest.mark.parametrize("case", ["mlp", *(pytest.param(case, marks=pytest.mark.slow) for case in list(THREE)[1:])])
def test_the_step_that_runs_has_the_predicted_operations_and_memory(case, executables):
    """Its state is donated, and it takes no more memory than a step that is written by hand."""
    module, *specs, expected = THREE[case]
    x, y = (np.zeros(*spec) for spec in specs)
    trainer = eg.Trainer(module, eg.losses.CrossEntropy(), optimizer=optax.sgd(1e-3, momentum=0.9))
    cost = trainer.cost(x, y)
    trainer.fit(x, y, batch_size=len(x), verbose=0)
    (executable,) = executables
    assert [cost.flops, trainer.step_flops] == pytest.approx([expected] * 2, rel=0.05)
    assert cost.peak_bytes == pytest.approx(peak(executable), rel=0.05)
    assert peak(executable) <= 1.02 * peak(by_hand(module, *(jax.ShapeDtypeStruct(*spec) for spec in specs)))


@pytest.mark.parametrize("k", [1, 4])
def test_every_leaf_of_parameters_and_optimizer_takes_the_buffer_of_its_old_value(k, executables):
    x, y = np.zeros((32, 16), np.float32), np.zeros(32, np.int32)
    trainer = eg.Trainer(MLP(), eg.losses.CrossEntropy(), optimizer=optax.adam(1e-3))
    trainer.fit(x, y, batch_size=4, max_steps=k, verbose=0, steps_per_execution=k)
    program = trainer._session.executor.ran["train"]
    (alias,) = re.findall(r"input_output_alias=\{(.*?)\}, entry", executables[0].as_text())
    donated = {int(number) for number in re.findall(r"\((\d+), \{\}, (?:may|must)-alias\)", alias)}
    assert donated == set(range(program.donated))  # the compiled step takes them first
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(program.state)]
    taken = {names[i] for i in program.changed[: program.donated]}
    assert {name for name in names if name.startswith((".params", ".optimizer"))} <= taken
