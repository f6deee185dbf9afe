"""Connectionist temporal classification."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from elegy.losses.class_targets import check_class_indices
from elegy.losses.labels import widen_integers
from elegy.losses.loss import Loss
from elegy.losses.numbers import at_least_float32, check_real
from elegy.losses.sequences import left_packed
from elegy.losses.shapes import array_shape, check_array
from elegy.pytree import static_field
from elegy.types import PyTree


def ctc(target: ArrayLike, preds: ArrayLike | tuple[ArrayLike, ArrayLike], *, blank_id: int = 0) -> jax.Array:
    """Computes the negative log-probability of label sequences over all of their alignments with the frames, by Optax.

    See Graves et al., "Connectionist temporal classification", 2006. If a sequence has no alignment, because there are
    more labels than frames, the value is about 1e5 (Optax's `log_epsilon`), not infinite.

    Args:
        target: labels `(B, S)`, integers; the blank and negative labels are padding.
        preds: logits of the frames `(B, T, C)`, or a tuple of them and the numbers of frames `(B,)`.
        blank_id: the class of the blank.

    Returns:
        `(B,)`, at least float32.

    Raises:
        ValueError: if the shapes do not fit, or the blank is not one of the classes.
        TypeError: if the labels are not integers, or the logits are complex.

    Example:
        >>> ctc(jnp.array([[1, 0]]), jnp.zeros((1, 2, 2))).round(4)  # 3 of 4 paths
        Array([0.2877], dtype=float32)
    """
    logits, frames = _logits_and_frames(preds)
    check_array(target, "target", "CTC")
    check_array(logits, "preds", "CTC")
    logits, target = jnp.asarray(logits), jnp.asarray(target)
    check_real("CTC", preds=logits)
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise TypeError(f"CTC: the labels must be integers, but target is {target.dtype}.")
    if logits.ndim != 3 or target.ndim != 2 or logits.shape[0] != target.shape[0]:
        raise ValueError(
            f"CTC: target has shape {target.shape} and preds {logits.shape}. Labels have the shape (batch, labels) and "
            "logits (batch, frames, classes)."
        )
    if not 0 <= blank_id < logits.shape[-1]:
        raise ValueError(
            f"CTC: blank_id={blank_id} is not one of the {logits.shape[-1]} classes of preds, whose shape is "
            f"{logits.shape}; the last one is {logits.shape[-1] - 1}."
        )
    if frames is not None and jnp.shape(frames) != logits.shape[:1]:
        raise ValueError(
            f"CTC: the numbers of frames have shape {jnp.shape(frames)}, but must have shape {logits.shape[:1]}."
        )
    logits = logits.astype(at_least_float32(logits.dtype))
    target = widen_integers(target)
    labels, lengths = left_packed(target, (target != blank_id) & (target >= 0))
    label_paddings = (jnp.arange(labels.shape[1])[None] >= lengths[:, None]).astype(logits.dtype)
    logit_paddings = jnp.zeros(logits.shape[:2], logits.dtype)
    if frames is not None:
        logit_paddings = (jnp.arange(logits.shape[1])[None] >= jnp.asarray(frames)[:, None]).astype(logits.dtype)
    # Optax selects log-probabilities by a product with one-hot labels, which TF32 would round to 10 bits.
    # It adds arrays of different ranks, too.
    with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
        return optax.ctc_loss(logits, logit_paddings, labels, label_paddings, blank_id=blank_id)


def _logits_and_frames(preds: Any) -> tuple[Any, Any]:
    if isinstance(preds, (tuple, list)) and any(array_shape(part) for part in preds):
        if len(preds) != 2:
            raise ValueError(
                f"CTC: preds has {len(preds)} parts, but must be logits, or a tuple of logits (batch, frames, classes) "
                "and numbers of frames (batch,)."
            )
        return preds[0], preds[1]
    return preds, None


class CTC(Loss):
    """Connectionist temporal classification (see `ctc`): labels of a sequence without alignment.

    Args:
        blank_id: the class of the blank; labels of this value are padding.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> CTC()(target=jnp.array([[1, -1]]), preds=jnp.zeros((1, 2, 2))).item()
        0.28768...
    """

    blank_id: int = static_field(default=0)

    def call(self, target: ArrayLike, preds: ArrayLike | tuple[ArrayLike, ArrayLike]) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: labels `(B, S)`.
            preds: logits `(B, T, C)`, or a tuple of them and the numbers of frames `(B,)`.

        Raises:
            ValueError: if the shapes do not fit, or the blank is not one of the classes.
            TypeError: if the labels are not integers.
        """
        return ctc(target, preds, blank_id=self.blank_id)

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that the labels are in the range of the logits.

        Args:
            target: ground truth, on the host. Negative labels are padding.
            preds: predictions; only their shape is used.

        Raises:
            ValueError: if a label is too large.
        """
        logits = _logits_and_frames(preds)[0]
        if array_shape(target) and array_shape(logits):
            check_class_indices(target[target >= 0], logits.shape[-1], "CTC")
