"""The methods of a trainer that look at its steps: their cost, and settings that suit them."""

from __future__ import annotations

from elegy.data.columns import Given
from elegy.integers import positive_int
from elegy.trainer import one_batch
from elegy.trainer.diagnosis import batch_size as batch_size_module
from elegy.trainer.diagnosis import check as check_module
from elegy.trainer.diagnosis import learning_rate as learning_rate_module
from elegy.trainer.diagnosis.check import CheckReport
from elegy.trainer.diagnosis.cost import Cost, cost_of
from elegy.trainer.diagnosis.learning_rate import LearningRateTest
from elegy.trainer.one_fit import not_in_fit
from elegy.trainer.session import Session
from elegy.types import PyTree


class DiagnosisMethods:
    """Measures and checks steps; the base of `Trainer`."""

    _session: Session

    @property
    def step_flops(self) -> float:
        """The floating-point operations of the training step that ran last, over all devices and members.

        XLA counts them in the lowered step, a multiply-add as two; loops count by their lengths. An optimizer that
        every replica repeats counts for each of them. Operations inside of custom calls are not known.

        Raises:
            RuntimeError: if no compiled training step has run.
        """
        program = self._session.executor.ran.get("train")
        if program is None:
            raise RuntimeError(
                "no compiled training step has run: call fit or train_on_batch first. The steps of the core level "
                'and of strategy="eager" are not compiled.'
            )
        return program.flops

    def cost(
        self,
        data: PyTree = None,
        labels: PyTree = None,
        *,
        inputs: PyTree = None,
        sample_weight: PyTree = None,
        batch_size: int | None = None,
    ) -> Cost:
        """Counts the operations and the memory of a training step, by compiling it; nothing is computed.

        Memory is that of a step of its own under the trainer's strategy. `fit` adds the batches that it reads ahead
        and, if the data is small, all of it (see "Performance" in the documentation). On the CPU, convolutions allocate
        working memory that the compiler does not plan.

        Args:
            data: one batch as for `init_on_batch`, of arrays or `jax.ShapeDtypeStruct`: shapes and dtypes count.
            labels: as for `init_on_batch`.
            inputs: as for `init_on_batch`.
            sample_weight: as for `init_on_batch`.
            batch_size: the number of rows, over all devices; None for those of the inputs.

        Raises:
            ValueError: if the step is of the core level, or the strategy does not compile.
            StepError: if the step returns the wrong thing, or there is no optimizer.

        Example:
            >>> import jax, optax, flax.linen as nn
            >>> import elegy as eg
            >>> trainer = eg.Trainer(nn.Dense(10), eg.losses.CrossEntropy(), optimizer=optax.adam(1e-3))
            >>> x, y = jax.ShapeDtypeStruct((1, 784), "float32"), jax.ShapeDtypeStruct((1,), "int32")
            >>> cost = trainer.cost(x, y, batch_size=4096)
            >>> cost.parameters, cost.bytes["parameters"], cost.bytes["batch"]
            (7850, 31400, 12861440)
        """
        session, given = self._session, Given.of("cost", data, inputs, labels, sample_weight)
        batch = one_batch.structure_of("cost", given, batch_size)
        one_batch.check_trains(session, "cost", compiled=True)
        executor = one_batch.own_executor(session)
        return cost_of(one_batch.training_program(session, executor, session.planned(batch), batch))

    def check(
        self,
        data: PyTree = None,
        labels: PyTree = None,
        *,
        inputs: PyTree = None,
        sample_weight: PyTree = None,
        batch_size: int | None = None,
        steps: int = 10,
    ) -> CheckReport:
        """Looks for mistakes in a training step: trains on one batch for a few steps, on a copy of the state.

        It finds out whether the loss of the batch falls, gradients are finite, each parameter is used and gets a
        gradient, the outputs of a row depend on other rows of the batch, and a loss that expects logits gets
        probabilities. The state, the counters, the history and the order of the data stay as they are. The copy takes
        the memory of another state.

        Args:
            data: one batch as for `init_on_batch`.
            labels: as for `init_on_batch`.
            inputs: as for `init_on_batch`.
            sample_weight: as for `init_on_batch`.
            batch_size: uses the first rows only; None for all.
            steps: the number of training steps.

        Raises:
            ValueError: if the step is of the core level.
            StepError: if the step returns the wrong thing, or there is no optimizer.
            RuntimeError: if a callback calls it during `fit`.

        Example:
            >>> import numpy as np, optax, flax.linen as nn
            >>> import elegy as eg
            >>> class Net(nn.Module):
            ...     @nn.compact
            ...     def __call__(self, x):
            ...         self.param("forgotten", nn.initializers.ones, (3,))
            ...         return nn.Dense(1)(x - x.mean(0))
            >>> x = np.linspace(-1, 1, 16, dtype=np.float32)[:, None] ** 2
            >>> trainer = eg.Trainer(Net(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
            >>> report = trainer.check(x, 3 * x)
            >>> report.loss_falls, report.unused, report.mixed
            (True, ('forgotten',), ('(root)',))
            >>> print(report)
            ┌───────────────────────────────────┬────────┬─...
            ...
        """
        batch = one_batch.batch_of("check", Given.of("check", data, inputs, labels, sample_weight), batch_size)
        return check_module.check(self._session, batch, positive_int("steps", steps))

    def find_learning_rate(
        self,
        data: PyTree = None,
        labels: PyTree = None,
        *,
        inputs: PyTree = None,
        sample_weight: PyTree = None,
        batch_size: int | None = None,
        lowest: float = 1e-7,
        highest: float = 10.0,
        steps: int = 100,
        learning_rate: float | None = None,
    ) -> LearningRateTest:
        """Runs a learning-rate range test: trains with a rate that grows from step to step, on a copy of the state.

        The method is that of Smith, "Cyclical Learning Rates for Training Neural Networks", 2015 (arXiv:1506.01186).
        The rate grows by the same factor in each step; the test ends early when the loss diverges. The state, the
        counters, the history and the order of the data stay as they are.

        The rate is set in the state of `optax.inject_hyperparams`; several keep their ratios, and the largest is shown.
        Elsewhere the updates are scaled, relative to the constant that the optimizer multiplies its updates by at last.

        Args:
            data: as for `fit`, but no iterable.
            labels: as for `fit`.
            inputs: as for `fit`.
            sample_weight: as for `fit`.
            batch_size: the number of examples of a step; None for 32.
            lowest: the first learning rate.
            highest: the last learning rate.
            steps: the number of steps, if the loss does not diverge.
            learning_rate: the rate with which the optimizer was built, if the test cannot find it: of a schedule, the
                highest.

        Raises:
            ValueError: if the learning rate of the optimizer is not known, a number is out of its range, the first loss
                is not finite, or the step is of the core level.
            TypeError: if the data is an iterable.
            StepError: if the step returns the wrong thing, or there is no optimizer.
            RuntimeError: if a callback calls it during `fit`.

        Example:
            >>> import numpy as np, optax, flax.linen as nn
            >>> import elegy as eg
            >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
            >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(1e-3))
            >>> test = trainer.find_learning_rate(x, 3 * x, lowest=1e-4)
            >>> 1e-2 < test.suggestion < 10
            True
            >>> axes = test.plot()  # needs matplotlib
        """
        return learning_rate_module.find_learning_rate(
            self._session,
            Given.of("find_learning_rate", data, inputs, labels, sample_weight),
            batch_size,
            lowest,
            highest,
            positive_int("steps", steps),
            learning_rate,
        )

    def find_batch_size(
        self,
        data: PyTree = None,
        labels: PyTree = None,
        *,
        inputs: PyTree = None,
        sample_weight: PyTree = None,
        budget: int | None = None,
        multiple: int | None = None,
        largest: int = 2**16,
        trial: bool = True,
    ) -> int:
        """Finds the largest batch size whose training step fits into memory.

        The compiler's analysis of the step (`cost(...).peak_bytes`) is compared with the budget for a few sizes; then
        one step runs with the size that was found, on a copy of the state, and smaller sizes follow if memory is not
        enough. The state, the counters, the history and the order of the data stay as they are.

        Args:
            data: some examples as for `init_on_batch`, of arrays or `jax.ShapeDtypeStruct`: the number of rows does
                not matter.
            labels: as for `init_on_batch`.
            inputs: as for `init_on_batch`.
            sample_weight: as for `init_on_batch`.
            budget: the bytes on each device; None for the memory that JAX may take there, or, on the CPU, half of the
                host's memory.
            multiple: the size is a multiple of this; None for the number of replicas.
            largest: the largest size to consider.
            trial: False to rely on the analysis alone.

        Returns:
            The size, over all devices, as `fit` takes it.

        Raises:
            ValueError: if not even the smallest size fits, or the step is not compiled.
            StepError: if the step returns the wrong thing, or there is no optimizer.
            RuntimeError: if a callback calls it during `fit`.

        Example:
            >>> import numpy as np, optax, flax.linen as nn
            >>> import elegy as eg
            >>> x = np.ones((8, 1000), np.float32)
            >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
            >>> size = trainer.find_batch_size(x, x[:, :1], budget=1_000_000)
            >>> 200 < size < 250, trainer.cost(x, x[:, :1], batch_size=size).peak_bytes <= 1_000_000
            (True, True)
        """
        not_in_fit(self._session, "find_batch_size")
        given = Given.of("find_batch_size", data, inputs, labels, sample_weight)
        return batch_size_module.find_batch_size(self._session, given, budget, multiple, largest, trial)
