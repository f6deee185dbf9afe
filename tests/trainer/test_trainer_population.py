"""`elegy.Population`: every member equals the run of a Trainer of its own."""

import contextlib
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from some_cases import some

import elegy as eg
from elegy.errors import NonFiniteError
from elegy.module.finite import FiniteCheck
from elegy.trainer.nonfinite import NonFiniteMonitor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 22)
FIT = {"epochs": 2, "batch_size": 8, "validation_data": (X[:9], Y[:9]), "verbose": 0}


class Dropout(nn.Module):
    """A dense layer behind dropout of a rate that may be traced, and batch statistics."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x, training):
        x = nn.BatchNorm(use_running_average=not training)(x)
        if training:
            x = x * jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape) / (1 - self.rate)
        return nn.Dense(3)(x)


class Heads(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"a": nn.Dense(1)(x), "b": nn.Dense(1)(x)}


def build(learning_rate, rate=0.2, weight=1.0, decay=1e-4):
    loss = [eg.losses.CrossEntropy(weight=weight), eg.regularizers.L2(0.01)]
    optimizer = optax.adamw(learning_rate, weight_decay=decay)
    return eg.Trainer(Dropout(rate), loss, eg.metrics.Accuracy(), optimizer, seed=3)


def plain(learning_rate=0.1, **options):
    return eg.Trainer(nn.Dense(3), eg.losses.CrossEntropy(), optimizer=optax.sgd(learning_rate), seed=3, **options)


def own_run(population, i, make=build, **options):
    """A Trainer of its own with the seed and the hyperparameters of a member."""
    hyperparameters = {name: values[i].item() for name, values in population.hyperparameters.items()}
    trainer = make(**hyperparameters)
    own = eg.Trainer(
        trainer.state,
        seed=population.seeds[i],
        accumulate=trainer._session.accumulate,
        callbacks=options.pop("callbacks", ()),
    )
    return own, own.fit(X, Y, **FIT | options)


def assert_same(tree, other):
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def assert_equals_own_runs(population, make=build, **options):
    history = population.fit(X, Y, **FIT | options)
    for i in range(1, len(population)):  # the first member is that of the template; compiling own runs takes long
        own, theirs = own_run(population, i, make, **options)
        for name, values in theirs.history.items():
            np.testing.assert_allclose(history[name][:, i], values, rtol=1e-5, atol=1e-6, err_msg=f"{name} of {i}")
        member = population[i]
        assert_same((member.state.params, member.state.batch_stats), (own.state.params, own.state.batch_stats))
        assert_same(member.state.optimizer.state, own.state.optimizer.state)
        assert (member.step, member.epoch, member.seed) == (own.step, own.epoch, own.seed)
        assert np.array_equal(jax.random.key_data(member.state.key), jax.random.key_data(own.state.key))
    return history


OVER = {"learning_rate": [0.01, 0.1], "rate": [0.0, 0.5], "weight": [1.0, 3.0], "decay": [0.0, 0.3]}


def test_each_member_equals_its_own_run():
    population = eg.Population(build, over=OVER, seeds=[5, 9], devices=jax.devices()[:3])
    assert_equals_own_runs(population)
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(population.state)} == {2}


@pytest.mark.parametrize("options", some([{"steps_per_execution": 1}, {"shuffle": False}, {"drop_remaining": True}], 1))
def test_every_way_of_batches_gives_members_their_own_order(options):
    population = eg.Population(plain(accumulate=2), seeds=2, devices=jax.devices()[:1])
    assert_equals_own_runs(population, lambda: plain(accumulate=2), **options)


@pytest.mark.parametrize("options", some([{}, {"steps_per_execution": 1}, {"shuffle": False}], 1))
def test_members_that_train_one_after_another_equal_their_own_runs(monkeypatch, options):
    # As for steps that are large enough on a CPU. Members with equal seeds equal their own runs in a shared order.
    decided = []
    monkeypatch.setattr("elegy.engine.program.members_in_turn", lambda *_: decided.append(True) or True)
    over = {name: [*values, *values[::-1]] for name, values in OVER.items()}
    population = eg.Population(build, over=over, seeds=[5] * 4, order="shared", devices=jax.devices()[:2])
    assert_equals_own_runs(population, **options)
    assert decided
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(population.state)} == {2}


def test_large_steps_of_members_equal_their_own_runs():
    x = np.random.default_rng(1).normal(size=(60, 64)).astype(np.float32)
    y = np.arange(60) % 10
    fit = {"epochs": 2, "batch_size": 32, "verbose": 0}

    def wide(learning_rate):
        module = nn.Sequential([nn.Dense(384), nn.relu, nn.Dense(10)])
        return eg.Trainer(module, eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.sgd(learning_rate))

    population = eg.Population(wide, over={"learning_rate": [0.05, 0.1]}, seeds=[2, 2], devices=jax.devices()[:1])
    history = population.fit(x, y, **fit)
    assert not population._trainer._session.executor.ran["train"].strategy.batched
    own = eg.Trainer(wide(0.1).state, seed=2)
    theirs = own.fit(x, y, **fit)
    np.testing.assert_allclose(history["loss"][:, 1], theirs.history["loss"], rtol=1e-6)
    assert_same(population[1].state.params, own.state.params)


@pytest.mark.slow
def test_arrays_that_are_stacked_on_the_host(monkeypatch):
    monkeypatch.setattr("elegy.trainer.execution.RESIDENT_BYTES_ON_CPU", 0)
    assert_equals_own_runs(eg.Population(plain(), seeds=2, devices=jax.devices()[:1]), plain, steps_per_execution=2)


def test_one_shared_order_is_that_of_the_first_seed():
    seen = eg.Population(plain(), seeds=[4, 6], order="shared")
    seen.fit(X, Y, **FIT)
    own, _ = own_run(seen, 0, plain)
    assert_same(seen[0].state.params, own.state.params)
    other, _ = own_run(seen, 1, plain)
    assert not np.allclose(seen[1].state.params["kernel"], other.state.params["kernel"], atol=1e-6)


def test_early_stopping_acts_on_each_member():
    rates = {"learning_rate": [1e-7, 30.0, 0.3]}
    rule = {"monitor": "val_loss", "patience": 1, "min_delta": 0.01, "restore_best_weights": True}
    population = eg.Population(plain, over=rates, devices=jax.devices()[:1])
    history = population.fit(X, Y, **FIT | {"epochs": 6}, callbacks=[eg.callbacks.EarlyStopping(**rule)])
    ends = []
    for i in range(1, 3):
        own, theirs = own_run(population, i, plain, epochs=6, callbacks=[eg.callbacks.EarlyStopping(**rule)])
        member = population[i]
        assert (member.step, member.epoch) == (own.step, own.epoch)
        assert_same(member.state.params, own.state.params)
        assert_same(member.state.optimizer.state, own.state.optimizer.state)
        assert member.history.epoch == theirs.epoch
        assert_same(member.history.history, theirs.history)
        assert np.isnan(history["loss"][len(theirs.epoch) :, i]).all()
        ends.append(own.epoch)
    assert ends[0] != ends[1]  # they did stop at different epochs
    values = [population[i].evaluate(X[:9], Y[:9], verbose=0)["loss"] for i in range(3)]
    assert population.best("val_loss") == np.argmin(values)


@pytest.mark.parametrize("cut", [None, 11])
def test_a_member_that_stops_inside_of_an_epoch_has_its_values_in_the_history(tmp_path, cut):
    rates, rule = [1e-7, 30.0, 0.3, 3.0], {"monitor": "val_a_loss", "patience": 2}
    validation = {"a": (X[:9], (Y[:9] + 2) % 3), "b": (X[9:], Y[9:])}
    options = FIT | {"epochs": 5, "validation_data": validation, "validation_freq": eg.Every(steps=2)}

    def run(*cuts, **more):
        population = eg.Population(plain, over={"learning_rate": rates}, devices=jax.devices()[:1])
        saved = eg.callbacks.ModelCheckpoint(tmp_path, every=eg.Every(steps=5))
        callbacks = [eg.callbacks.EarlyStopping(**rule), saved, *map(Cut, cuts)]
        with pytest.raises(KeyError) if cuts else contextlib.nullcontext():
            population.fit(X, Y, **options, callbacks=callbacks, **more)
        return population

    if cut is not None:
        run(cut, steps_per_execution=1)
    population = run(resume=None if cut is None else "auto")
    inside = []
    for i in range(len(rates)):
        own, theirs = own_run(population, i, plain, **options, callbacks=[eg.callbacks.EarlyStopping(**rule)])
        found = population[i].history
        assert (found.epoch, found.step) == (theirs.epoch, theirs.step)
        assert_same(found.history, theirs.history)
        column = population.history["loss"][:, i]
        assert_same(column[~np.isnan(column)], np.array(theirs.history["loss"]))
        inside.append(own.step % 3 > 0)
    assert set(inside) == {True, False}
    last = [population[i].history.history["loss"][-1] for i in range(len(rates))]
    assert population.best("loss") == np.argmin(last)


class Cut(eg.callbacks.Callback):
    """Raises at the end of a training step, as if the machine failed."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, event):
        if event.step == self.step:
            raise KeyError("cut")


@pytest.mark.parametrize("cut", some([16, 11, 7], 1))
def test_a_run_with_early_stopping_resumes_to_the_same_bits(tmp_path, cut):
    """Checkpoints have the states of members that have stopped, and the best ones of the others."""

    def run(folder, *cuts, **options):
        population = eg.Population(plain, over={"learning_rate": [1e-7, 30.0, 0.3]}, devices=jax.devices()[:1])
        rule = eg.callbacks.EarlyStopping("val_loss", patience=2, min_delta=0.01, restore_best_weights=True)
        saved = eg.callbacks.ModelCheckpoint(tmp_path / folder, every=eg.Every(steps=5))
        callbacks = [rule, saved, *map(Cut, cuts)]
        with pytest.raises(KeyError) if cuts else contextlib.nullcontext():
            population.fit(X, Y, **FIT | {"epochs": 7}, callbacks=callbacks, steps_per_execution=1, **options)
        return population

    whole, half = run("whole"), run("cut", cut)
    assert [half[i].epoch for i in range(2)] == ([3, 3] if cut > 10 else [2, 2])
    again = run("cut", resume="auto")
    assert again.step > cut
    for one, two in zip(jax.tree.leaves(again.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(
            *(jax.random.key_data(k) if k.dtype == whole.state.key.dtype else k for k in (one, two))
        )
    for name, values in whole.history.items():
        np.testing.assert_array_equal(again.history[name], values, err_msg=name)
    assert [again[i].epoch for i in range(3)] == [whole[i].epoch for i in range(3)]
    assert again.best("val_loss") == whole.best("val_loss")
    other = eg.Population(plain, over={"learning_rate": [1e-7, 30.0, 0.2]}, devices=jax.devices()[:1])
    with pytest.raises(eg.errors.CheckpointError, match="the hyperparameters of the members was"):
        other.fit(X, Y, **FIT, resume=tmp_path / "cut")


@pytest.mark.slow
def test_a_population_saved_after_early_stopping_resumes_with_more_epochs(tmp_path):
    """As a run of its own does from its best state; members that have stopped stay as they are."""
    rule = {"patience": 1, "min_delta": 0.01, "restore_best_weights": True}

    def run(epochs, **options):
        population = eg.Population(plain, over={"learning_rate": [1e-7, 0.3, 0.3]}, devices=jax.devices()[:1])
        population.fit(
            X, Y, **FIT | {"epochs": epochs}, callbacks=[eg.callbacks.EarlyStopping("loss", **rule)], **options
        )
        return population

    first = run(3)
    first.save(tmp_path / "saved")
    again = run(5, resume=tmp_path / "saved")
    np.testing.assert_array_equal(again[0].state.params["kernel"], first[0].state.params["kernel"])
    assert (again[0].epoch, again[1].epoch) == (first[0].epoch, 5)
    own, _ = own_run(first, 1, plain, epochs=3, callbacks=[eg.callbacks.EarlyStopping("loss", **rule)])
    own.fit(X, Y, **FIT, callbacks=[eg.callbacks.EarlyStopping("loss", **rule)])
    assert_same(again[1].state.params, own.state.params)


@pytest.mark.parametrize("freq", some([2, eg.Every(steps=2)], 1))
def test_best_is_of_the_state_that_a_member_has(freq):
    """Also if evaluations do not run in each epoch, or several times in one."""
    rule = eg.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    population = eg.Population(plain, over={"learning_rate": [5.0, 0.3]}, devices=jax.devices()[:1])
    options = {"epochs": 12, "validation_data": (X[:9], (Y[:9] + 1) % 3), "validation_freq": freq}
    history = population.fit(X, Y, **FIT | options, callbacks=[rule])
    values = population.evaluate(*options["validation_data"], verbose=0)["loss"]
    assert not np.allclose(history["val_loss"][-1], values)  # it is not the state of the end
    assert not np.isnan(history["val_loss"][0]).any()
    np.testing.assert_allclose(population._values.values("val_loss"), values, rtol=1e-5)


def test_evaluate_and_predict_by_member():
    population = eg.Population(plain(), seeds=3, devices=jax.devices()[:1])
    population.fit(X, Y, **FIT)
    values, outputs = population.evaluate(X, Y, verbose=0, batch_size=8), population.predict(X, batch_size=8)
    assert outputs.shape == (3, 22, 3)
    for i in range(3):
        np.testing.assert_allclose(values["loss"][i], population[i].evaluate(X, Y, verbose=0)["loss"], rtol=1e-6)
        np.testing.assert_allclose(outputs[i], population[i].predict(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(population.predict(X, combine="mean"), outputs.mean(0), rtol=1e-6)


def test_a_member_trains_on_as_its_own_run_would():
    population = eg.Population(plain(), seeds=2, devices=jax.devices()[:1])
    population.fit(X, Y, **FIT)
    own, _ = own_run(population, 1, plain)
    member = population[1]
    before = population.state.params["kernel"].copy()
    for trainer in (member, own):
        trainer.fit(X, Y, **FIT)
    assert_same(member.state.params, own.state.params)
    np.testing.assert_array_equal(population.state.params["kernel"], before)


def test_the_arrays_of_a_member_are_on_one_device():
    """Those of a population of two are on two; what is computed of several members needs them on one."""
    population = eg.Population(plain, over={"learning_rate": [0.0, 0.1]})
    population.fit(X, Y, epochs=1, verbose=0)
    assert len(population.state.params["kernel"].devices()) == 2
    one, two = (population[i].state for i in range(2))
    assert {leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves((one, two))} == {True}


def test_the_run_folder_of_a_member_is_that_of_the_population(tmp_path):
    def make(learning_rate):
        return plain(learning_rate, run_dir=tmp_path / "run")

    population = eg.Population(make, over={"learning_rate": [0.1, 0.2]}, devices=jax.devices()[:1])
    history = population.fit(X, Y, epochs=1, verbose=0)
    names, row = (tmp_path / "run" / "log.csv").read_text().splitlines()
    losses = dict(zip(names.split(","), map(float, row.split(",")), strict=True))
    np.testing.assert_allclose(losses["loss"], history["loss"].mean(), rtol=1e-5)


def test_a_saved_population_goes_on_to_the_same_bits(tmp_path):
    made = [eg.Population(plain, over={"learning_rate": [0.01, 0.1]}, seeds=2) for _ in range(2)]
    first = made[0].fit(X, Y, **FIT)
    made[0].save(tmp_path / "members")
    made[1].restore(tmp_path / "members")
    made[1].evaluate(X, Y, verbose=0)
    np.testing.assert_array_equal(made[1].history["val_loss"], first["val_loss"])
    both = [one.fit(X, Y, **FIT)["loss"] for one in made]
    np.testing.assert_array_equal(*both)
    other = eg.Population(plain, over={"learning_rate": [0.01, 0.2]}, seeds=2)
    with pytest.raises(eg.errors.CheckpointError, match="members with other hyperparameters"):
        other.restore(tmp_path / "members")


class Managed(eg.ElegyModule):
    """Logs scalars of its own, whose values of the epoch are in the state."""

    def managed_init_step(self, key, batch):
        return self.replace(params=jax.random.normal(key, (5, 3)))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        logits = batch[0] @ self.params
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
        return loss, self.log("largest", logits.max(), reduce="max")


@pytest.mark.parametrize("count", [1, 2])
def test_a_population_whose_steps_log_resumes_within_an_epoch(tmp_path, count):
    def run(devices, **options):
        def make(learning_rate):
            return eg.Trainer(Managed(), optimizer=optax.sgd(learning_rate))

        population = eg.Population(
            make, over={"learning_rate": [0.01, 0.1]}, seeds=[3, 4], devices=jax.devices()[:devices]
        )
        population.fit(X, Y, epochs=2, batch_size=8, verbose=0, **options)
        return population

    whole = run(1)
    run(1, max_steps=2).save(tmp_path / "cut")
    again = run(count, resume=tmp_path / "cut")
    for name, values in whole.history.items():
        np.testing.assert_allclose(again.history[name], values, rtol=1e-6, err_msg=name)
    assert_same(again.state.params, whole.state.params)


def test_an_output_that_is_one_number_for_a_batch_is_one_for_each_member():
    def apply(params, x):
        return {"rows": x @ params, "norm": (x @ params).sum()}

    def loss(target, preds):
        return optax.softmax_cross_entropy_with_integer_labels(preds["rows"], target)

    trainer = eg.Trainer((lambda key, x: jax.random.normal(key, (5, 3)), apply), loss, None, optax.sgd(0.1))
    population = eg.Population(trainer, seeds=2, devices=jax.devices()[:1])
    population.fit(X, Y, **FIT)
    outputs, mean = population.predict(X), population.predict(X, combine="mean")
    for i in range(2):
        params = np.asarray(population.state.params)[i]
        np.testing.assert_allclose(outputs["rows"][i], X @ params, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(outputs["norm"][i], (X @ params).sum(), rtol=1e-4)
    np.testing.assert_allclose(mean["norm"], outputs["norm"].mean(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"the output norm cannot be joined .*population\[i\].predict_iter"):
        population.predict(X, batch_size=8)


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        ([], ValueError, "at least one device"),
        (0, ValueError, "Population needs at least one device"),
        ("cpu", TypeError, "a number or a list of JAX devices, not 'cpu'"),
        ([0, 1], TypeError, "a number or a list of JAX devices"),
        (99, ValueError, "needs 99 devices"),
    ],
)
def test_the_devices_of_a_population_are_checked(devices, error, message):
    with pytest.raises(error, match=message):
        eg.Population(plain(), seeds=2, devices=devices)
    with pytest.raises(ValueError, match="each once"):
        eg.Population(plain(), seeds=2, devices=[jax.devices()[0]] * 2)


def test_a_hyperparameter_that_is_nan_is_that_of_its_checkpoint(tmp_path):
    def build(learning_rate, unused):
        return plain(learning_rate)

    over = {"learning_rate": [0.1, 0.2], "unused": [1.0, np.nan]}
    made = [eg.Population(build, over=over) for _ in range(3)]
    made[0].fit(X, Y, **FIT, callbacks=[eg.callbacks.ModelCheckpoint(tmp_path / "run")])
    made[0].save(tmp_path / "members")
    made[1].restore(tmp_path / "members")
    values = [one.evaluate(X, Y, verbose=0) for one in made[:2]]
    jax.tree.map(np.testing.assert_array_equal, *values)
    made[2].fit(X, Y, **FIT, resume=tmp_path / "run")
    np.testing.assert_array_equal(made[2].history["val_loss"], made[0].history["val_loss"])
    other = eg.Population(build, over=over | {"unused": [np.nan, np.nan]})
    with pytest.raises(eg.errors.CheckpointError, match="members with other hyperparameters"):
        other.restore(tmp_path / "members")


class Indexed(eg.ElegyModule):
    """A managed module whose steps read the indices of the batch and the epoch."""

    def managed_init_step(self, key, batch):
        return self.replace(params=jax.random.normal(key, (5,)))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss = ((batch[0] @ self.params - batch[1]) ** 2).mean() * (1 + batch_idx + epoch_idx)
        return loss, self.log("batch", batch_idx * 1.0, reduce="last")

    def managed_test_step(self, key, batch, batch_idx):
        return self.log("loss", ((batch[0] @ self.params - batch[1]) ** 2).mean() + batch_idx)


@pytest.mark.parametrize("steps", some([1, 2], 1))
def test_members_of_the_managed_level_know_their_indices(steps):
    def make():
        return eg.Trainer(Indexed(), optimizer=optax.sgd(0.01), seed=3)

    assert_equals_own_runs(eg.Population(make(), seeds=2), make, steps_per_execution=steps)


@pytest.mark.slow
def test_losses_of_a_dict_have_the_names_and_values_of_a_trainer():
    def heads(weight):
        squared = {"a": eg.losses.MeanSquaredError(), "b": eg.losses.MeanSquaredError(weight=weight)}
        return eg.Trainer(Heads(), squared, {"a": eg.metrics.MeanAbsoluteError()}, optax.sgd(0.05), seed=3)

    population = eg.Population(heads, over={"weight": [1.0, 3.0]})
    data = (X, {"a": X[:, :1], "b": X[:, 1:2]})
    history = population.fit(*data, batch_size=8, epochs=2, verbose=0)
    own = heads(3.0)
    for name, values in own.fit(*data, batch_size=8, epochs=2, verbose=0).history.items():
        np.testing.assert_allclose(history[name][:, 1], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert history.keys() == own.history.history.keys()


@pytest.mark.slow
def test_a_member_that_diverges_leaves_the_others_alone():
    population = eg.Population(plain, over={"learning_rate": [0.01, float("nan")]}, devices=jax.devices()[:1])
    with pytest.warns(RuntimeWarning, match="the loss is nan"):
        population.fit(X, Y, **FIT)
    own, _ = own_run(population, 0, plain)
    assert_same(population[0].state.params, own.state.params)
    assert population.best("loss") == 0


def averaged(learning_rate=0.1):
    return plain(learning_rate, averaging=eg.EMA(0.5), freeze="bias", precision="mixed_bfloat16")


@pytest.mark.parametrize("over", [None, pytest.param({"learning_rate": [0.1, 0.3]}, marks=pytest.mark.slow)])
def test_members_keep_the_average_the_precision_and_the_frozen_parameters_of_their_trainer(over, tmp_path):
    population = eg.Population(averaged if over else averaged(), over=over, seeds=[4, 5])
    history = population.fit(X, Y, validation_weights="averaged", **FIT)
    own = averaged(0.3 if over else 0.1)
    own._session.seed = 5
    values = own.fit(X, Y, validation_weights="averaged", **FIT).history
    np.testing.assert_allclose(history["val_loss"][:, 1], values["val_loss"], rtol=1e-5)
    assert np.all(np.asarray(population.state.params["bias"]) == 0)
    scored = population.evaluate(X, Y, weights="averaged", verbose=0)["loss"]
    np.testing.assert_allclose(scored[1], own.evaluate(X, Y, weights="averaged", verbose=0)["loss"], rtol=1e-5)
    outputs = population.predict(X, weights="averaged")
    np.testing.assert_allclose(outputs[1], own.predict(X, weights="averaged"), rtol=1e-2, atol=1e-3)  # bfloat16
    assert not np.allclose(outputs[1], population.predict(X)[1], rtol=1e-2)
    population[1].save(tmp_path / "member")
    saved, _ = eg.checkpoint.restore(tmp_path / "member")
    average = own.state.averaged_params.value["kernel"]
    np.testing.assert_allclose(saved["averaged_params/value/kernel"], average, rtol=1e-5)


def test_a_function_of_one_member_chooses_its_weights():
    population = eg.Population(plain(), seeds=2)
    population.fit(X, Y, **FIT)
    outputs = population.predict(X, weights=lambda state: {**state.params, "bias": jax.numpy.arange(3.0)})
    np.testing.assert_allclose(outputs, X @ np.asarray(population.state.params["kernel"]) + np.arange(3.0), rtol=1e-5)


def guarded(weight, nonfinite="skip"):
    loss = eg.losses.CrossEntropy(weight=weight)
    return eg.Trainer(nn.Dense(3), loss, optimizer=optax.adam(0.1), seed=3, nonfinite=nonfinite)


def test_the_steps_of_a_member_that_are_not_finite_are_left_out(tmp_path):
    bad = X.copy()
    bad[20] = np.nan
    over, fit = {"weight": [1.0, float("inf"), 2.0]}, {"epochs": 2, "batch_size": 8, "verbose": 0}
    population = eg.Population(guarded, over=over)
    population.fit(bad, Y, **fit)
    own = guarded(2.0)
    own.fit(bad, Y, **fit)
    assert own.skipped_steps == 2
    assert population.skipped_steps.tolist() == [2, 6, 2]
    assert [population[i].skipped_steps for i in range(3)] == [2, 6, 2]
    assert_same(population[2].state.params, own.state.params)
    fresh = guarded(1.0)
    fresh.init_on_batch((X[:8], Y[:8]))
    assert_same(population[1].state.params, fresh.state.params)
    population.save(tmp_path / "all")
    population.fit(bad, Y, **fit)
    assert population.skipped_steps.tolist() == [4, 12, 4]
    population.restore(tmp_path / "all")
    assert population.skipped_steps.tolist() == [2, 6, 2]


def test_the_error_of_a_step_names_the_member():
    population = eg.Population(lambda weight: guarded(weight, "raise"), over={"weight": [1.0, float("inf")]})
    with pytest.raises(NonFiniteError, match="member 1: step 1, in epoch 1, is not finite: the loss is inf"):
        population.fit(X, Y, epochs=1, batch_size=8, verbose=0)
    assert np.isfinite(population.state.params["kernel"]).all()


def test_steps_after_a_member_has_stopped_do_not_count():
    checks = [FiniteCheck(np.ones((1, 2), bool), np.full(2, np.nan)) for _ in range(4)]
    monitor = NonFiniteMonitor("raise")
    monitor.ends = lambda: [2, None]
    monitor.record(SimpleNamespace(finite_checks=lambda: checks), 0, 0, SimpleNamespace(struct=plain().state))
    assert monitor.count().by_member == (2, 4)


def test_a_grid_combines_values_and_seeds():
    population = eg.Population(build, grid={"learning_rate": [0.5, 0.25], "rate": [0.0, 0.125]}, seeds=[7, 8])
    rows = list(zip(*population.hyperparameters.values(), population.seeds, strict=True))
    assert rows == [(a, b, c) for a in (0.5, 0.25) for b in (0.0, 0.125) for c in (7, 8)]


def wide(width):
    return eg.Trainer(nn.Dense(width), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1))


def deep(layers):
    return eg.Trainer(nn.Sequential([nn.Dense(3) for _ in range(layers)]), eg.losses.CrossEntropy())


REFUSED = [
    (lambda: eg.Population(build, over={"learning_rate": [0.1, 0.2]}, seeds=3), ValueError, "learning_rate has 2"),
    (lambda: eg.Population(build, over={"learning": [0.1]}), TypeError, "Its parameters are: learning_rate"),
    (lambda: eg.Population(build, over={"learning_rate": [[0.1]]}), ValueError, r"its shape is \(1, 1\)"),
    (lambda: eg.Population(deep, over={"layers": [1, 2]}), TypeError, "'layers' cannot be that of a population"),
    (lambda: eg.Population(wide, over={"width": ["a", "b"]}), TypeError, "are numbers"),
    (lambda: eg.Population(build, over={"learning_rate": [0.1]}, grid={"rate": [0]}), ValueError, "both given"),
    (lambda: eg.Population(plain()), ValueError, "how many members"),
    (lambda: eg.Population(plain(), seeds=0), ValueError, "positive integer"),
    (lambda: eg.Population(plain(), seeds=[0.5]), TypeError, "seed must be an integer"),
    (lambda: eg.Population(plain(), over={"rate": [0.1]}), TypeError, r"def build\(rate\)"),
    (lambda: eg.Population(plain(strategy="eager"), seeds=2), ValueError, "strategy"),
    (lambda: eg.Population(plain(nonfinite="rollback"), seeds=2), ValueError, "'skip' leaves out the step"),
    (lambda: eg.Population(plain(), seeds=2).evaluate(X, Y, weights="averaged"), ValueError, "has no average"),
    (lambda: eg.Population(lambda: 3, seeds=2), TypeError, "must return an elegy.Trainer"),
    (lambda: eg.Population(plain(), seeds=2, order="all"), ValueError, "'own' or 'shared'"),
    (lambda: eg.Population(plain(), seeds=2).predict(X, combine="sum"), ValueError, "'mean' or None"),
    (lambda: eg.Population(plain(), seeds=2)[2], IndexError, "the population has 2"),
    (lambda: eg.Population(plain(), seeds=2).best(), KeyError, "in the history"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_width_is_refused_before_anything_runs():
    population = eg.Population(wide, over={"width": [3, 4]})
    with pytest.raises(TypeError, match="Shapes must be 1D") as raised:
        population.fit(X, Y, verbose=0)
    notes = "\n".join(raised.value.__notes__)
    assert "one population for each value" in notes
    assert "This population has 'width'." in notes
    assert population.step == 0
