"""The exceptions of this library. Wrong arguments raise `ValueError` or `TypeError`."""

from __future__ import annotations

import dataclasses


class ElegyError(Exception):
    """Base class of the exceptions that only this library raises."""


class FrozenError(dataclasses.FrozenInstanceError, RuntimeError, ElegyError):
    """A field of an immutable object was assigned or deleted.

    It is an `AttributeError` and a `RuntimeError` at once.
    """


class StepError(RuntimeError, ElegyError):
    """A step returned an invalid result."""


class NonFiniteError(FloatingPointError, ElegyError):
    """The loss or the gradients of a step were not finite; the message names step, epoch, loss and leaves."""


class MissingMethodError(NotImplementedError, ElegyError):
    """A module has no method for a phase; the message lists what to implement."""


class ExampleError(RuntimeError, ElegyError):
    """An example of a data set could not be read; the message names it, and the cause is the data set's own error."""


class CheckpointError(ValueError, ElegyError):
    """A checkpoint cannot be written, read, or matched with the state."""


class CheckpointFormatError(CheckpointError):
    """An intact checkpoint has a format that this release does not read."""
