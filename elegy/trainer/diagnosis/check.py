"""What is wrong with a training step: it is run a few times on one batch, on a copy of the state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from elegy.data import unpack
from elegy.data.batch import rows
from elegy.engine.executor import Executor
from elegy.engine.program import Program
from elegy.engine.state_buffer import StateBuffer
from elegy.errors import MissingMethodError
from elegy.flat import make_jaxpr
from elegy.jaxprs import arguments_read
from elegy.losses import CrossEntropy
from elegy.losses.by_key import given_by_key
from elegy.metrics import LossesAndMetrics
from elegy.module.step_values import OWN_LOGS
from elegy.names import path_name
from elegy.trainer.one_batch import check_trains, chunk_of, copied_state, own_executor, training_program
from elegy.trainer.session import Session
from elegy.trainer.tables import draw
from elegy.types import Batch, PyTree

_SHOWN = 8
_SUM = 1e-2
"""The largest difference of a sum of probabilities from 1, which bfloat16 has rounded."""
_ROUNDING = 1e-5
"""The largest difference of an output between two batches that share its row, relative to the largest output."""


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What `Trainer.check` found; `print` shows a table.

    Args:
        losses: the loss of the batch before each step.
        gradients: the norm of the gradient of each parameter by path, the largest of the steps.
        not_finite: parameters whose gradient had NaN or infinity in the last step, by path.
        zero: parameters whose gradient was zero in every step, and that are not known to be unused: units that are
            never active, a parameter that is multiplied by zero, `jax.lax.stop_gradient`.
        unused: parameters that neither the losses nor the metrics are computed from. In a loop (`nn.scan`) it is not
            known which parameters are used.
        mixed: outputs of the prediction whose rows depend on other rows of the batch, by path; None if that could not
            be found out (one row, equal rows, no prediction, outputs without rows).
        probabilities: losses that expect logits, and received outputs of which every row is positive and adds up to 1,
            such as those of a softmax, which the loss would then apply twice.

    Example:
        >>> report = CheckReport((2.0, 1.0), {"w": 0.5}, (), (), (), ())
        >>> report.ok, report.loss_falls
        (True, True)
    """

    losses: tuple[float, ...]
    gradients: Mapping[str, float]
    not_finite: tuple[str, ...]
    zero: tuple[str, ...]
    unused: tuple[str, ...]
    mixed: tuple[str, ...] | None
    probabilities: tuple[str, ...] = ()

    @property
    def loss_falls(self) -> bool:
        """True if the loss is lower after the steps than before."""
        return self.losses[-1] < self.losses[0]

    @property
    def ok(self) -> bool:
        """True if nothing was found."""
        found = (self.not_finite, self.zero, self.unused, self.mixed, self.probabilities)
        return self.loss_falls and not any(found)

    def __str__(self) -> str:
        """A table of the checks."""
        first, last = self.losses[0], self.losses[-1]
        rows = [
            ("the loss of one batch falls", _verdict(self.loss_falls), f"{first:.4g} -> {last:.4g}"),
            ("gradients are finite", _verdict(not self.not_finite), _listed(self.not_finite)),
            ("gradients are not zero", _verdict(not self.zero), _listed(self.zero)),
            ("every parameter is used", _verdict(not self.unused), _listed(self.unused)),
            (
                "outputs depend on their own row",
                "unknown" if self.mixed is None else _verdict(not self.mixed),
                _listed(self.mixed or ()),
            ),
            ("losses get the logits they expect", _verdict(not self.probabilities), _listed(self.probabilities)),
        ]
        return draw(("Check", "Result", "Where"), rows, right=0).rstrip()


def check(session: Session, batch: Batch, steps: int) -> CheckReport:
    """Checks a training step; see `Trainer.check`."""
    check_trains(session, "check")
    losses: list[float] = []
    norms: dict[str, list[float]] = {}
    executor = own_executor(session, (OWN_LOGS, "grad_norm/*"))
    with copied_state(session, "check", batch) as buffer:
        # Of the whole batch at once: in a loop over microbatches, all parameters are arguments of the loop.
        unused = _unused(training_program(session, Executor(session.strategy), buffer, batch))
        executor.reset(buffer, "train")
        for _ in range(steps + 1):  # the loss of a step is that before it
            step = executor.run("train", buffer, chunk_of(session, batch), session.epoch).step_values(0)
            losses.append(float(step["loss"]))
            for name in step:
                before, _, path = name.partition("/")
                if before == "grad_norm":
                    norms.setdefault(path, []).append(float(step[name]))
        inputs = unpack(batch)[0]
        outputs = _outputs(session, executor, buffer, inputs)
        mixed = _mixed_rows(session, executor, buffer, inputs, outputs)
        probabilities = _given_probabilities(buffer.form.losses_and_metrics, outputs)
    found = {path: max(filter(math.isfinite, seen), default=math.nan) for path, seen in norms.items()}
    return CheckReport(
        losses=tuple(losses),
        gradients=found,
        not_finite=tuple(path for path, seen in norms.items() if not math.isfinite(seen[-1])),
        zero=tuple(path for path, norm in found.items() if norm == 0 and path not in unused),
        unused=unused,
        mixed=mixed,
        probabilities=probabilities,
    )


def _unused(program: Program) -> tuple[str, ...]:
    """The paths of the parameters that the logs of a traced step do not depend on."""
    read = arguments_read(program.closed, range(len(jax.tree.leaves(program.outputs))))
    picked, params = make_jaxpr(lambda state: state.get_params(), program.state)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return tuple(path for i, path in enumerate(paths) if read.isdisjoint(arguments_read(picked, [i])))


def _outputs(session: Session, executor: Executor, buffer: StateBuffer, inputs: PyTree) -> PyTree:
    """The outputs of the prediction, on the host; None if the module does not predict."""
    try:
        leaves, treedef = executor.predict(buffer.fork(), chunk_of(session, inputs))
    except MissingMethodError:
        return None
    return jax.tree.unflatten(treedef, session.strategy.collect_outputs(leaves))


def _mixed_rows(
    session: Session, executor: Executor, buffer: StateBuffer, inputs: PyTree, outputs: PyTree
) -> tuple[str, ...] | None:
    """The paths of the outputs whose even rows change if the odd rows of the batch are replaced."""
    count = rows(inputs)
    index = np.where(np.arange(count) % 2, 0, np.arange(count))  # in every replica's part of the batch
    other = jax.tree.map(lambda leaf: np.asarray(leaf)[index], inputs)
    equal = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(inputs), jax.tree.leaves(other), strict=True))
    if outputs is None or equal:
        return None
    first = jax.tree_util.tree_leaves_with_path(outputs)
    second = jax.tree.leaves(_outputs(session, executor, buffer, other))
    pairs = [
        (path_name(path), one[::2], two[::2])
        for (path, one), two in zip(first, second, strict=True)
        if np.shape(one)[:1] == (count,)
    ]
    return tuple(name for name, one, two in pairs if not _close(one, two)) if pairs else None


def _given_probabilities(losses: LossesAndMetrics | None, outputs: PyTree) -> tuple[str, ...]:
    """The names of the losses that expect logits, and receive probabilities."""
    if losses is None or losses.losses is None:
        return ()
    known = losses.losses
    return tuple(
        name
        for name, keys, loss in zip(known.names, known.keys, known.losses, strict=True)
        if isinstance(loss, CrossEntropy) and loss.from_logits and not loss.binary
        if _are_probabilities(given_by_key(loss, keys, {"preds": outputs})["preds"])
    )


def _are_probabilities(preds: Any) -> bool:
    """True if each row of an array is positive and adds up to 1. Logits of several rows are not, but by chance."""
    if not isinstance(preds, np.ndarray) or preds.ndim < 2 or preds.shape[-1] < 2 or len(preds) < 2:
        return False
    values = preds.astype(np.float64)
    return bool((values >= 0).all() and np.abs(values.sum(-1) - 1).max() < _SUM)


def _close(one: Any, two: Any) -> bool:
    one, two = (np.asarray(value).astype(np.complex128) for value in (one, two))
    largest = np.abs(one[np.isfinite(one)]).max(initial=0.0)
    return np.allclose(one, two, rtol=0.0, atol=_ROUNDING * float(largest), equal_nan=True)


def _verdict(good: bool) -> str:
    return "yes" if good else "NO"


def _listed(paths: tuple[str, ...]) -> str:
    more = f", and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
