import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.engine import program
from elegy.engine.packed_sums import PackedSums
from elegy.engine.program import Program
from elegy.strategies import Jit

X, Y = np.random.default_rng(0).normal(size=(22, 3)).astype("float32"), np.arange(22) % 2


def trained(fuse, **options):
    module = (lambda key, x: {"w": jnp.ones((3, 2))}, lambda params, x: x @ params["w"])
    metrics = [eg.metrics.Accuracy(), eg.metrics.ConfusionMatrix(2)]
    trainer = eg.Trainer(module, eg.losses.CrossEntropy(), metrics, optax.adam(0.1), **options)
    for steps in fuse:  # packed sums of a fit are those that a fused one continues
        trainer.fit(X, Y, batch_size=4, epochs=2, steps_per_execution=steps, validation_data=(X, Y), verbose=0)
    state = eg.strategies.Strategy().collect_state(trainer.state)
    leaves = [jax.random.key_data(leaf) if leaf.dtype == state.key.dtype else leaf for leaf in jax.tree.leaves(state)]
    return [np.asarray(leaf).tobytes() for leaf in leaves], trainer.history.history


@pytest.mark.parametrize("options", [{}, {"nonfinite": "skip"}, {"accumulate": 2}])
@pytest.mark.parametrize("fuse", [(1,), (1, 3, 1)])
@pytest.mark.some(3)
def test_packed_sums_do_not_change_a_bit(monkeypatch, fuse, options):
    packed = trained(fuse, **options)
    monkeypatch.setattr(PackedSums, "of", lambda structs, strategy: None)
    assert trained(fuse, **options) == packed


def test_a_single_step_takes_one_array_for_all_sums(monkeypatch):
    counts = []
    kept = Program.single

    def single(self):
        def step(*args):
            out = kept(self)(*args)
            counts.append((len(jax.tree.leaves(args[:2])), self.donated, len(self.changed), len(out[1])))
            return out

        return step

    monkeypatch.setattr(program.Program, "single", single)
    trained((1,))
    taken, donated, changed, returned = counts[0]
    assert changed > donated + 4  # without packing: loss, accuracy and confusion matrix
    assert set(counts) == {(donated + 1, donated, changed, donated + 1), counts[-1]}
    assert taken == returned == donated + 1


def test_what_cannot_be_packed():
    sums = [jnp.ones(2), jnp.ones(2)]
    assert PackedSums.of(sums, Jit()) is not None
    assert PackedSums.of(sums[:1], Jit()) is None
    assert PackedSums.of([*sums, jnp.ones(2, "int32")], Jit()) is None
    assert PackedSums.of(sums, eg.strategies.DataParallel()) is None
