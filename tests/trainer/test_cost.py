"""`trainer.cost`: the operations and the memory of a training step, before it runs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import Core, Managed, assert_same_bits, compilations, regression, trainer_of
from some_cases import some

import elegy as eg

STRATEGIES = ["jit", "data_parallel", "sharded", "fsdp"]
X, Y = np.zeros((512, 64), np.float32), np.zeros(512, np.int32)
SIZES = [(64, 256), (256, 256), (256, 16)]
PARAMETERS = sum(a * b + b for a, b in SIZES)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(16)(nn.relu(nn.Dense(256)(nn.relu(nn.Dense(256)(x)))))


def trainer(strategy="jit", **options):
    return eg.Trainer(MLP(), eg.losses.CrossEntropy(), optimizer=optax.adam(1e-3), strategy=strategy, **options)


@pytest.mark.parametrize("strategy", some(STRATEGIES, 2))
def test_bytes_by_kind_are_those_of_a_count_by_hand(strategy):
    """Adam keeps two moments; `fsdp` divides large leaves over the eight devices, and all divide the batch."""
    one = trainer(strategy)
    with compilations() as names:
        cost = one.cost(X, Y)
    assert [name for name in names if "step" in name] == ["jit(train_step)"]  # the first state is not computed
    shards = 8 if strategy == "fsdp" else 1
    assert cost.parameters == PARAMETERS
    assert cost.bytes["parameters"] == pytest.approx(4 * PARAMETERS / shards, rel=0.05)
    assert cost.bytes["optimizer"] == pytest.approx(2 * cost.bytes["parameters"], rel=0.001)
    assert cost.bytes["batch"] == 4 * 512 * (64 + 1) / (1 if strategy == "jit" else 8)
    assert cost.bytes["temporaries"] > 0
    products = [2 * 512 * a * b for a, b in SIZES]
    adam = 16 * PARAMETERS * (8 if strategy == "data_parallel" else 1)  # each replica repeats it
    assert cost.flops == pytest.approx(3 * sum(products) - products[0] + adam, rel=0.05)


@pytest.mark.parametrize("strategy", some(STRATEGIES, 2))
def test_the_peak_is_that_of_the_step_that_runs(strategy):
    """The compiler's own sum for the executable that a step runs: arguments, results and temporaries."""
    one = trainer(strategy)
    predicted = one.cost(X, Y).peak_bytes
    one.train_on_batch(X, Y)
    session = one._session
    program = session.executor.ran["train"]
    leaves, strategy = session.buffer.peek(), session.strategy
    changed = [leaves[i] for i in program.changed]
    batch = strategy.place((X, Y), "batch")
    arguments = changed[: program.donated], changed[program.donated :], [leaves[i] for i in program.constant]
    memory = program.single().lower(*arguments, batch, None, np.zeros(3, np.int32)).compile().memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert predicted == pytest.approx(peak + memory.output_size_in_bytes - memory.alias_size_in_bytes, rel=0.001)


def test_nothing_runs_and_no_state_is_made():
    one = trainer()
    one.cost(jax.ShapeDtypeStruct((8, 64), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32))
    assert one.state.params is None
    one.train_on_batch(X, Y)
    before = one.state
    one.cost(X, Y)
    assert one.state is before
    assert (one.step, one.epoch) == (1, 0)
    other = trainer()
    other.train_on_batch(X, Y)
    assert_same_bits(other.state.params, before.params)


def test_another_batch_size_and_microbatches():
    """Batch and products grow with the rows; activations take the memory of one microbatch."""
    small, large = (trainer().cost(X, Y, batch_size=n) for n in (512, 2048))
    assert (large.batch_size, large.bytes["batch"]) == (2048, 4 * small.bytes["batch"])
    whole, cut = (trainer(accumulate=k).cost(X, Y, batch_size=8192).bytes["temporaries"] for k in (1, 8))
    assert cut < whole / 4


def test_parameters_of_a_managed_module():
    x, y = regression()
    cost = trainer_of(Managed).cost(x, y)
    assert (cost.parameters, cost.bytes["parameters"], cost.bytes["optimizer"]) == (8, 32, 32)


def test_the_table_shows_every_kind():
    cost = trainer().cost(X, Y)
    text = str(cost)
    assert all(kind in text for kind in cost.bytes)
    assert f"512 rows: {cost.flops / 1e6:.3f} MFLOP, {PARAMETERS:,} parameters" in text


def test_steps_that_are_not_compiled_are_refused():
    x, y = regression()
    with pytest.raises(ValueError, match=r"trainer\.set_strategy"):
        trainer("eager").cost(X, Y)
    with pytest.raises(ValueError, match=r"Core\.train_step is of the core level"):
        trainer_of(Core).cost(x, y)
    with pytest.raises(eg.errors.StepError, match="no optimizer"):
        eg.Trainer(MLP(), eg.losses.CrossEntropy()).cost(X, Y)
    with pytest.raises(ValueError, match="accumulate=8 cuts a batch"):
        trainer(accumulate=8).cost(X[:4], Y[:4])


@pytest.mark.parametrize(
    ("order", "width", "devices", "in_turn"),
    [
        ("own", 8, 1, False),
        ("own", 8, 2, False),
        ("shared", 8, 1, False),
        ("shared", 256, 1, True),
        ("shared", 256, 2, True),
    ],
)
def test_the_cost_of_a_population_is_that_of_its_members(order, width, devices, in_turn):
    members, rows = 4, 64
    x, y = np.ones((2 * rows, width), np.float32), np.zeros(2 * rows, np.int32)

    def build(rate=0.1):
        module = nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(10)])
        return eg.Trainer(module, eg.losses.CrossEntropy(), optimizer=optax.adam(rate))

    one = build()
    one.fit(x, y, batch_size=rows, verbose=0)
    seen = {}

    class Look(eg.callbacks.Callback):
        def on_train_end(self, event):
            seen["step"], seen["cost"] = event.trainer.step_flops, event.trainer.cost(x[:rows], y[:rows])
            seen["in turn"] = not next(iter(event.trainer._session.executor.ran.values())).strategy.batched

    population = eg.Population(
        build, over={"rate": [0.1] * members}, seeds=members, order=order, devices=jax.local_devices()[:devices]
    )
    monitor = eg.callbacks.MFUMonitor(peak=1e12, every=eg.Every(steps=1))
    history = population.fit(x, y, batch_size=rows, epochs=3, verbose=0, callbacks=[Look(), monitor])
    alone, cost = one.cost(x[:rows], y[:rows]), seen["cost"]
    assert seen["in turn"] is in_turn
    assert seen["step"] == pytest.approx(members * one.step_flops, rel=0.02)
    assert cost.flops == pytest.approx(members * alone.flops, rel=0.02)
    assert cost.parameters == members * alone.parameters
    for kind in ("parameters", "optimizer"):
        assert cost.bytes[kind] * devices == members * alone.bytes[kind]
    assert cost.bytes["batch"] == alone.bytes["batch"] * (members // devices if order == "own" else 1)
    assert (history["tflops"][-1] > 0).all()
