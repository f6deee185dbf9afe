"""EarlyStopping, TerminateOnNaN, LambdaCallback, intervals and the comparison of values."""

import json
import math
import warnings

import optax
import pytest
from boring_modules import High, regression
from fake_run import FakeState, FakeTrainer, run

import elegy as eg
from elegy import metrics
from elegy.callbacks import (
    HOOKS,
    CallbackList,
    EarlyStopping,
    Event,
    LambdaCallback,
    ModelCheckpoint,
    Monitor,
    PeriodicCallback,
    TerminateOnNaN,
)
from elegy.names import snake_case
from elegy.types import Every

NAN, INF = math.nan, math.inf
# Metrics of which the smallest value is the best: errors, distances and entropies.
ERRORS = [
    "BinaryCrossEntropy",
    "BinaryCrossentropy",
    "ECE",
    "EditDistance",
    "ExpectedCalibrationError",
    "FrechetDistance",
    "MAE",
    "MAPE",
    "MSE",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquareError",
    "MeanSquaredError",
    "Perplexity",
    "RootMeanSquareError",
    "RootMeanSquaredError",
    "SMAPE",
    "SymmetricMeanAbsolutePercentageError",
    "WER",
    "WordErrorRate",
]
# Names of elegy.metrics that are not scores or errors, and the one that is also a loss.
NO_VALUES = [
    "AuxLosses",
    "AuxMetrics",
    "CompensatedSum",
    "ConfusionMatrix",
    "CosineSimilarity",
    "DataType",
    "LossMetric",
    "Losses",
    "LossesAndMetrics",
    "Mean",
    "Metric",
    "Metrics",
    "Reduce",
    "Reduction",
    "Sum",
]


def losses(values, name="val_loss"):
    return [{"loss": 1.0} | ({} if value is None else {name: value}) for value in values]


class TestMonitor:
    @pytest.mark.parametrize(
        ("name", "mode"),
        [
            ("loss", "min"),
            ("val_loss", "min"),
            ("val_mean_squared_error", "min"),
            ("accuracy", "max"),
            ("val_sparse_accuracy", "max"),
            ("acc", "max"),
            ("auc", "max"),
            ("val_auc_1", "max"),
            ("f1_score", "max"),
            ("recall", "max"),
            ("val_precision", "max"),
            ("r2", "max"),
            ("accuracy_loss", "min"),
            ("macc", "min"),
            ("val_recall_set_cross_entropy", "min"),
            ("val_acc_nll", "min"),
            ("val_far_accuracy", "max"),
            ("accuracy_top5", "max"),
            ("precision_at_10", "max"),
            ("val_recall_of_2", "max"),
            ("val_f1_macro", "max"),
            ("val_mean_iou", "max"),
            ("val_dice_loss", "min"),
            ("val_dice_cross_entropy", "min"),
        ],
    )
    def test_auto_mode(self, name, mode):
        assert Monitor(name).mode == mode

    @pytest.mark.parametrize("name", sorted(name for name in metrics.__all__ if name not in NO_VALUES))
    def test_auto_mode_knows_the_metrics_of_the_library(self, name):
        log = snake_case(getattr(metrics, name).__name__)
        mode = "min" if name in ERRORS else "max"
        assert Monitor(f"val_{log}").mode == Monitor(f"val_{log}_1").mode == mode

    def test_a_name_of_a_metric_and_a_loss_with_opposite_signs(self):
        for callback in (EarlyStopping, lambda name: ModelCheckpoint("run", monitor=name)):
            with pytest.raises(ValueError, match="'val_cosine_similarity' may be the metric"):
                callback("val_cosine_similarity")
        assert EarlyStopping("val_cosine_similarity", mode="max").monitor.mode == "max"

    def test_unknown_mode(self):
        with pytest.raises(ValueError, match="mode='biggest': it must be 'auto', 'min' or 'max'"):
            Monitor("loss", "biggest")

    @pytest.mark.parametrize("mode", ["min", "max"])
    def test_nan_beats_nothing_and_anything_beats_none(self, mode):
        monitor = Monitor("loss", mode)
        assert not monitor.better(NAN, None)
        assert not monitor.better(NAN, 1.0)
        assert monitor.better(1.0, None)


class TestEarlyStopping:
    # What Keras's documentation defines, worked out by hand: values by epoch, and the epoch after which it stops.
    @pytest.mark.parametrize(
        ("values", "options", "stops_after", "best_epoch"),
        [
            ([4, 3, 2, 1], {}, None, 3),
            ([4, 3, 3, 1], {}, 2, 1),
            ([4, 5, 3, 4, 5, 1], {"patience": 2}, 4, 2),
            ([4, 5, 4, 3, 4], {"patience": 2}, 2, 0),
            ([4, 3.9, 3.8, 3.5], {"min_delta": 0.15}, 1, 0),
            ([4, 3.9, 3.8, 3.7], {"min_delta": 0.15, "patience": 2}, None, 2),
            ([1, 2, 3, 2], {"mode": "max"}, 3, 2),
            ([4, 3, 2, 1], {"mode": "max", "patience": 1}, 1, 0),
            ([9, 8, 9, 1], {"baseline": 5.0, "patience": 1}, 2, 1),
            ([9, 4, 5, 5], {"baseline": 5.0, "patience": 2}, 3, 1),
            ([1, 9, 9, 9], {"start_from_epoch": 2}, 3, 2),
            ([NAN, 2, 1], {}, None, 2),
            ([2, NAN, 1], {}, 1, 0),
            ([4, None, 3, None, 2], {}, None, 4),
            ([4, None, 5, None], {}, 2, 0),
            ([3, 2], {"patience": 0}, None, 1),
        ],
    )
    def test_table(self, values, options, stops_after, best_epoch):
        callback = EarlyStopping(**options)
        trainer = run([callback], losses(values))
        assert callback.stopped_epoch == stops_after
        assert trainer.stop_training == (stops_after is not None)
        assert trainer.step == 4 * (len(values) if stops_after is None else stops_after + 1)
        assert callback.best_epoch == best_epoch

    @pytest.mark.parametrize("values", [[3, 1, 2], [3, 1, 2, 2, 2]])
    def test_restores_the_state_but_for_its_key(self, values):
        trainer = run([EarlyStopping(patience=2, restore_best_weights=True)], losses(values))
        steps = 4 * min(len(values), 4)
        assert trainer.state == FakeState("p8", "own8", key=steps)
        assert trainer.step == steps

    def test_leaves_the_state_alone_unless_asked(self):
        assert run([EarlyStopping(patience=9)], losses([3, 1, 2])).state.params == "p12"

    def test_a_second_run_starts_anew(self):
        callback = EarlyStopping()
        trainer = run([callback], losses([1, 2]))
        run([callback], losses([5, 4]), trainer=trainer, first_epoch=2)
        assert (callback.best, callback.best_epoch, callback.stopped_epoch) == (4, 3, None)

    def test_resume_stops_where_the_whole_run_would(self):
        values = [3, 1, 2, 2, 2, 2]
        whole = EarlyStopping(patience=3)
        run([whole], losses(values))
        first, second = EarlyStopping(patience=3), EarlyStopping(patience=3)
        trainer = run([first], losses(values[:3]))
        states = json.loads(json.dumps(trainer.callbacks.state_dict()))
        run([second], losses(values[3:]), trainer=trainer, first_epoch=3, states=states)
        assert second.stopped_epoch == whole.stopped_epoch == 4
        assert (second.best, second.best_epoch) == (1, 1)

    def test_resume_says_that_the_best_weights_are_gone(self):
        trainer = run([EarlyStopping(patience=9)], losses([1, 2]))
        resumed = EarlyStopping(patience=9, restore_best_weights=True)
        states = trainer.callbacks.state_dict()
        with pytest.warns(UserWarning, match=r"cannot restore epoch 1 \(val_loss 1\)") as caught:
            run([resumed], losses([3]), trainer=trainer, first_epoch=2, states=states)
        assert len(caught) == 1
        assert trainer.state.params == "p12"

    @pytest.mark.parametrize(
        ("logs", "monitor", "message"),
        [
            ({"loss": 1.0, "val_loss": 0.5}, "val_acc", "'val_acc' is not logged. Logged are: loss, val_loss"),
            ({"loss": 1.0}, "accuracy", "'accuracy' is not logged. Logged are: loss"),
        ],
    )
    def test_missing_monitor(self, logs, monitor, message):
        trainer = FakeTrainer()
        with pytest.raises(ValueError, match=message):
            run([EarlyStopping(monitor)], [logs] * 3, trainer=trainer)
        assert trainer.step == 4

    @pytest.mark.parametrize(
        "make", [lambda path: EarlyStopping("val_loss"), lambda path: ModelCheckpoint(path, "val_loss")]
    )
    def test_a_validation_value_needs_a_validation(self, tmp_path, make):
        trainer, callback = FakeTrainer(), make(tmp_path)
        with pytest.raises(ValueError, match=r"'val_loss' will not.*'loss'"):
            run([callback], [{"loss": 1.0}] * 3, trainer=trainer)
        assert trainer.step == 0

    def test_negative_patience(self):
        with pytest.raises(ValueError, match="patience=-1"):
            EarlyStopping(patience=-1)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: EarlyStopping(["val_loss"]), r"monitor=\['val_loss'\]: it must be the name of one log"),
            (lambda: ModelCheckpoint("run", monitor=True), "monitor=True: it must be the name"),
            (lambda: EarlyStopping(patience=2.5), r"patience=2\.5: it must be an integer"),
            (lambda: EarlyStopping(min_delta="0.1"), r"min_delta=.0\.1.: it must be a number"),
            (lambda: ModelCheckpoint("run", save_top_k="3"), "save_top_k='3': it must be an integer"),
        ],
    )
    def test_arguments_of_other_types(self, make, message):
        with pytest.raises(TypeError, match=message):
            make()

    def test_verbose(self, capsys):
        run([EarlyStopping(restore_best_weights=True, verbose=1)], losses([1, 2]))
        assert capsys.readouterr().out.splitlines() == [
            "EarlyStopping: val_loss has not improved since epoch 1 (val_loss 1)",
            "EarlyStopping: restored epoch 1 (val_loss 1)",
        ]


class TestTerminateOnNaN:
    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    def test_stops_at_the_first_due_step_after_the_fault(self, bad):
        with pytest.warns(RuntimeWarning, match=r"'loss' is .* since step 5 of epoch 2\. Look"):
            trainer = run(
                [TerminateOnNaN(Every(steps=3))],
                [{"loss": 1.0}] * 5,
                batch_logs=lambda step: {"accuracy": 0.0, "loss": bad if step >= 5 else 1.0},
            )
        assert trainer.step == 6

    def test_the_epochs_end_is_read_as_well(self):
        with pytest.warns(RuntimeWarning, match="'loss' is nan at step 8 of epoch 2"):
            trainer = run([TerminateOnNaN()], [{"loss": 1.0}, {"loss": NAN}, {"loss": 1.0}], batch_logs=lambda step: {})
        assert trainer.step == 8

    def test_reads_at_due_steps_only(self):
        reads = []
        run([TerminateOnNaN(Every(steps=5))], [{"loss": 1.0}] * 3, batch_logs=lambda step: {"loss": 1.0}, reads=reads)
        assert reads == [5, 10]

    def test_a_metric_may_be_nan(self):
        logs = {"loss": 1.0, "auc": NAN, "val_loss": NAN}
        assert not run([TerminateOnNaN()], [logs], batch_logs=lambda step: logs).stop_training

    def test_without_a_loss_every_training_log_counts(self):
        with pytest.warns(RuntimeWarning, match="'energy' is nan"):
            run([TerminateOnNaN()], [{"energy": NAN, "val_energy": 1.0}])

    @pytest.mark.parametrize(("options", "most"), [((), None), ((Every(steps=50),), 50)])
    def test_only_a_given_interval_bounds_executions(self, options, most):
        assert CallbackList([TerminateOnNaN(*options)]).longest_execution("train")[0] == most


class TestIntervals:
    class Acts(PeriodicCallback):
        batch_hooks_read = "logs"

        def __init__(self, every):
            super().__init__(every)
            self.steps = []

        def on_train_batch_end(self, event):
            if self.due(event):
                self.steps.append(event.step)

        def on_epoch_end(self, event):
            if self.due(event):
                self.steps.append(event.step)

    # Four steps an epoch, 8 examples and half a second a step.
    @pytest.mark.parametrize(
        ("every", "first", "second"),
        [
            (Every(steps=3), [3, 6, 9, 12], [15, 18]),
            (Every(steps=1), list(range(1, 13)), list(range(13, 21))),
            (Every(epochs=1), [4, 8, 12], [16, 20]),
            (Every(epochs=2), [8], [16]),
            (Every(examples=24), [3, 6, 9, 12], [15, 18]),
            (Every(seconds=2.0), [4, 8, 12], [16, 20]),
        ],
    )
    def test_due(self, every, first, second):
        callback = self.Acts(every)
        trainer = run([callback], [{}] * 3)
        assert callback.steps == first
        callback.steps.clear()
        run([callback], [{}] * 2, trainer=trainer, first_epoch=3)
        assert callback.steps == second

    def test_steps_that_come_in_chunks(self):
        callback = self.Acts(Every(steps=10))
        callback.on_train_begin(Event(None, "train", step=0, epoch=0))
        for step in (8, 16, 24, 32, 40, 48):
            callback.on_train_batch_end(Event(None, "train", step=step, epoch=0, batch=step - 1))
        assert callback.steps == [16, 24, 32, 40]

    # Four steps an epoch, 8 examples and half a second a step.
    @pytest.mark.parametrize(
        "every", [Every(steps=3), Every(epochs=1), Every(epochs=2), Every(examples=24), Every(seconds=1.5)]
    )
    @pytest.mark.parametrize("back", [0, 4, 6, 8])
    @pytest.mark.parametrize("reached", [8, 9, 11])
    @pytest.mark.parametrize("heard", ["all", "due"])
    def test_a_run_that_goes_back_is_due_where_it_was(self, every, back, reached, heard):
        def walk(callback, first, last, hears=lambda step: True):
            for step in range(first, last + 1):
                counts = {"step": step, "examples": 8 * step, "elapsed": step / 2}
                if hears(step):
                    callback.on_train_batch_end(Event(None, "train", epoch=(step - 1) // 4, batch=0, **counts))
                if step % 4 == 0:
                    callback.on_epoch_end(Event(None, "train", epoch=step // 4 - 1, **counts))
                    callback.on_epoch_begin(Event(None, "train", epoch=step // 4, **counts))

        plain, went_back = self.Acts(every), self.Acts(every)
        for callback in (plain, went_back):
            callback.on_train_begin(Event(None, "train", step=0, epoch=0))
        walk(plain, 1, 24)
        hears = (lambda step: True) if heard == "all" else set(plain.steps).__contains__  # as `selected_batches` says
        walk(went_back, 1, reached, hears)
        went_back.steps.clear()
        counts = {"step": back, "examples": 8 * back, "elapsed": back / 2}
        went_back.on_epoch_begin(Event(None, "train", epoch=back // 4, **counts))
        walk(went_back, back + 1, 24, hears)
        assert went_back.steps == [step for step in plain.steps if step > back]

    def test_batches_are_not_listened_to_by_epoch(self):
        assert not CallbackList([self.Acts(Every(epochs=1))]).listens("on_train_batch_end")
        assert CallbackList([self.Acts(Every(seconds=1))]).listens("on_train_batch_end")

    @pytest.mark.parametrize("every", [100, "epoch", None])
    def test_a_number_is_not_an_interval(self, every):
        with pytest.raises(TypeError, match=r"Acts\(every=.*an interval is an `elegy.Every`"):
            self.Acts(every)


class TestLambdaCallback:
    @pytest.mark.parametrize("hook", HOOKS)
    def test_every_hook(self, hook):
        seen = []
        callbacks = CallbackList([LambdaCallback(**{hook: seen.append})])
        event = Event(None, "train", step=1, epoch=0)
        callbacks.emit(hook, event)
        assert seen == [event]
        assert [h for h in HOOKS if callbacks.listens(h)] == [hook]

    def test_unknown_hook_lists_the_known(self):
        with pytest.raises(TypeError, match=r"'on_batch' is not a hook\..*The hooks are: on_train_begin, .*_batch_end"):
            LambdaCallback(on_batch=print)

    def test_no_function(self):
        with pytest.raises(TypeError, match="on_epoch_end must be a function of one event, not 3"):
            LambdaCallback(on_epoch_end=3)

    @pytest.mark.parametrize(("declared", "most"), [(None, 1), ("state", 1), ("logs", None)])
    def test_declares_what_its_functions_read(self, declared, most):
        callback = LambdaCallback(on_train_batch_end=lambda event: None, batch_hooks_read=declared)
        assert CallbackList([callback]).longest_execution("train")[0] == most


def test_warnings_reach_the_user_under_the_default_filter():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run([TerminateOnNaN()], [{"loss": NAN}])
    assert [w.category for w in caught] == [RuntimeWarning]


@pytest.mark.parametrize(("verbose", "count"), [(0, 0), (1, 1), (2, 1)])
def test_fit_says_why_it_stopped_where_it_prints_epochs(capsys, verbose, count):
    """At the rate 0 the loss stays that of the first epoch."""
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.0))
    stop = EarlyStopping("loss", patience=2)
    trainer.fit(*regression(8), epochs=9, batch_size=8, callbacks=[stop], verbose=verbose)
    line = f"stopped by EarlyStopping: loss has not improved since epoch 1 (loss {stop.best:.6g})"
    out = capsys.readouterr().out
    assert out.splitlines().count(line) == count
    assert out.count("EarlyStopping") == count
