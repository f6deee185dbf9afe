"""`trainer.check`: mistakes in a training step, found on one batch; the trainer stays as it was."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import TX, Core, High, Managed, assert_same_bits, regression, squares, trainer_of
from some_cases import some

import elegy as eg

X, Y = regression(16)
MSE = eg.losses.MeanSquaredError


class Faulty(nn.Module):
    fault: str = ""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="first")(x))
        if self.fault == "mixed":
            x = x - x.mean(0)
        extra = self.param("extra", nn.initializers.ones, (8,))
        if self.fault == "stopped":
            x = x * jax.lax.stop_gradient(extra)
        elif self.fault == "not finite":
            x = x + jnp.sqrt(extra - 1)  # the derivative at 0 is infinite
        elif self.fault != "unused":
            x = x * extra
        return nn.Dense(2, name="last")(x)


def trainer(fault="", optimizer=None, **options):
    return eg.Trainer(Faulty(fault), MSE(), optimizer=optimizer or optax.adam(0.01), **options)


def test_a_right_step_passes():
    report = trainer().check(X, Y)
    assert report.ok
    assert (report.not_finite, report.zero, report.unused, report.mixed) == ((), (), (), ())
    assert set(report.gradients) == {"extra", "first/kernel", "first/bias", "last/kernel", "last/bias"}
    assert len(report.losses) == 11


@pytest.mark.parametrize("strategy", some(["jit", "eager", "data_parallel", "fsdp"], 2))
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("mixed", {"mixed": ("(root)",)}),
        ("stopped", {"zero": ("extra",)}),
        ("unused", {"unused": ("extra",)}),
    ],
)
def test_a_fault_is_found_and_no_other(fault, found, strategy):
    report = trainer(fault, strategy=strategy).check(X, Y)
    nothing = {"not_finite": (), "zero": (), "unused": (), "mixed": ()}
    assert {name: getattr(report, name) for name in nothing} == {**nothing, **found}
    assert not report.ok


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 3},
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16", "nonfinite": "skip"},
        {"averaging": eg.EMA(0.9)},
    ],
    ids=str,
)
def test_options_of_the_step_hide_no_fault(options):
    report = trainer("unused", **options).check(X, Y)
    assert (report.unused, report.zero, report.not_finite, report.mixed) == (("extra",), (), (), ())
    assert report.loss_falls


@pytest.mark.parametrize("from_logits", [True, False])
def test_a_softmax_before_a_loss_of_logits_is_found(from_logits):
    module = nn.Sequential([nn.Dense(3), nn.softmax, lambda x: {"a": x, "b": x * 3}])
    losses = {name: eg.losses.CrossEntropy(from_logits=from_logits) for name in ("a", "b")}
    own = eg.Trainer(module, losses, optimizer=optax.sgd(0.1))
    labels = np.arange(16) % 3
    report = own.check(X, {"a": labels, "b": labels}, steps=2)
    assert report.probabilities == (("a_loss",) if from_logits else ())
    assert ("losses get the logits they expect │ NO" in " ".join(str(report).split())) == from_logits


def test_gradients_that_are_not_finite_are_named():
    report = trainer("not finite").check(X, Y)
    assert "extra" in report.not_finite
    assert np.isnan(report.gradients["extra"])


def test_a_loss_that_rises_is_told():
    report = trainer(optimizer=optax.sgd(-0.1)).check(X, Y, steps=3)
    assert not report.loss_falls
    assert list(report.losses) == sorted(report.losses)


@pytest.mark.parametrize("level", [High, Managed])
def test_losses_and_gradients_are_those_of_a_bare_loop(level):
    one = trainer_of(level)
    report = one.check(X, Y, steps=2)
    one.init_on_batch(X, Y)
    params = one.state.params
    state, losses, norms = TX.init(params), [], []
    for _ in range(3):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(squares(p, X, Y)))(params)
        updates, state = TX.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
        norms.append({name: np.linalg.norm(leaf) for name, leaf in grads.items()})
    np.testing.assert_allclose(report.losses, losses, rtol=1e-5)
    for name in ("w", "b"):
        assert report.gradients[name] == pytest.approx(max(norm[name] for norm in norms), rel=1e-5)


@pytest.mark.parametrize("used", [False, True])
def test_the_trainer_stays_as_it_was(used):
    """Two trainers do the same, but one is checked in between: all bits and all logs are the same."""
    histories = []
    states = []
    for checked in (False, True):
        one = trainer()
        if used:
            one.fit(X, Y, batch_size=4, verbose=0)
        before = one.state, one.step, one.epoch, one.history
        if checked:
            traces = dict(one._session.executor.traces)
            one.check(X, Y)
            assert one._session.executor.traces == traces
            assert (one.state, one.step, one.epoch, one.history) == before
        histories.append(one.fit(X, Y, batch_size=4, epochs=2, verbose=0).history)
        states.append(jax.tree.leaves(one.state))
    assert histories[0] == histories[1]
    assert_same_bits(*states)


def test_a_checkpoint_that_waits_for_the_first_state_is_checked(tmp_path):
    trained = trainer()
    trained.fit(X, Y, epochs=20, verbose=0)
    trained.save(tmp_path / "checkpoint")
    one = trainer()
    one.restore(tmp_path / "checkpoint")
    report = one.check(X, Y, steps=1)
    assert report.losses[0] == pytest.approx(trained.evaluate(X, Y, verbose=0)["loss"], rel=1e-5)
    assert one.state.params is None
    assert one.step == 0
    assert one.history.history == {}


def test_rows_that_are_all_equal_say_nothing():
    assert trainer("mixed").check(np.ones((8, 3), np.float32), Y[:8]).mixed is None
    assert trainer("mixed").check(X[:1], Y[:1]).mixed is None


def test_the_table_names_the_places():
    report = trainer("unused").check(X, Y)
    (line,) = (line for line in str(report).splitlines() if "parameter" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["every parameter is used", "NO", "extra"]


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ValueError, match=r"Core\.train_step is of the core level"):
        trainer_of(Core).check(X, Y)
    with pytest.raises(ValueError, match=r"check\(batch_size=99\): the arrays have only 16 rows"):
        trainer().check(X, Y, batch_size=99)
    with pytest.raises(ValueError, match="steps"):
        trainer().check(X, Y, steps=0)

    class Checks(eg.Callback):
        def on_epoch_end(self, event):
            event.trainer.check(X, Y)

    with pytest.raises(RuntimeError, match="check was called while fit"):
        trainer().fit(X, Y, callbacks=[Checks()], verbose=0)
