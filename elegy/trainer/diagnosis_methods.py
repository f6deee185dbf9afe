"""The methods of a trainer that look at its steps: their cost, and settings that suit them."""

from __future__ import annotations

from elegy.trainer.session import Session


class DiagnosisMethods:
    """Measures and checks steps; the base of `Trainer`."""

    _session: Session

    @property
    def step_flops(self) -> float:
        """The floating-point operations of the training step that ran last, over all devices.

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
