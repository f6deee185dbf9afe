"""What a trainer tells about itself."""

from __future__ import annotations

from typing import Any

from elegy.trainer.nonfinite import Policy


class Report:
    """The part of a `Trainer` that shows and counts."""

    def __repr__(self: Any) -> str:
        """The module, the strategy, and how far training is; nothing runs on a device."""
        progress = f"step {self.step}, epoch {self.epoch}" if self._initialized else "not initialised"
        return f"<{type(self).__name__} of {self._module_name}, strategy {type(self.strategy).__name__}, {progress}>"

    @property
    def nonfinite(self: Any) -> Policy:
        """What happens at a step whose loss or gradients are not finite."""
        return self._monitor.policy

    @property
    def skipped_steps(self: Any) -> int:
        """How many steps were left out because they were not finite; 0 under `nonfinite="ignore"`.

        They count in `trainer.step`. Asking waits for the steps that still run.
        """
        return self._monitor.count()

    def summary(self: Any, inputs: Any, *, depth: int = 2, return_repr: bool = False) -> str | None:
        """Prints a table of layers with their output shapes, parameters and bytes, without running them.

        Args:
            inputs: one batch of inputs (arrays or `jax.ShapeDtypeStruct`).
            depth: how deep nested layers are listed.
            return_repr: whether to return the table instead of printing it.
        """
        from elegy.trainer.summary import summarize

        text = summarize(self, inputs, depth=depth)
        if return_repr:
            return text
        print(text)
        return None


def module_name(module: Any, state: Any) -> str:
    """What messages call a module: its class, within that of its adapter.

    Args:
        module: what was given.
        state: the `ElegyModule` that it became.

    Example:
        >>> import elegy as eg
        >>> module_name(print, eg.ElegyModule())
        'ElegyModule(builtin_function_or_method)'
    """
    adapter = type(state).__name__
    if type(module) is type(state) or isinstance(module, tuple):  # the class of a tuple, Haiku's too, says nothing
        return adapter
    return f"{adapter}({type(module).__name__})"
