"""Similarity of images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from elegy.losses.shapes import match_real
from elegy.metrics.pair_mean import MeanSquareError, PairMean
from elegy.pytree import static_field


class PSNR(MeanSquareError):
    """Peak signal-to-noise ratio in decibels, `10 log10(data_range ** 2 / mean squared error)`, over all data.

    The mean of the squared errors is taken over all images before the logarithm, so that equal images do not give
    infinity.

    Args:
        data_range: the difference of the largest and the smallest possible value: 1 for images in [0, 1], 255 for
            uint8.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `data_range` is not positive.

    Example:
        >>> PSNR().update(target=jnp.zeros((1, 2, 2)), preds=jnp.full((1, 2, 2), 0.1)).compute().round(3).item()
        20.0
    """

    data_range: float = static_field(default=1.0)

    def __post_init__(self) -> None:
        """Checks the range."""
        super().__post_init__()
        _check_range(self.data_range, "PSNR")

    def compute(self) -> jax.Array:
        """Returns the ratio in decibels, a scalar; infinite for equal images, as without data."""
        return 20.0 * np.log10(self.data_range) - 10.0 * jnp.log10(super().compute())


class SSIM(PairMean):
    """Structural similarity, the mean over images of the mean over all positions of a Gaussian window.

    At each position and channel it is `(2 mx my + c1) (2 cov + c2) / ((mx² + my² + c1) (vx + vy + c2))`, with means,
    variances and covariance in the window, `c1 = (0.01 data_range)²` and `c2 = (0.03 data_range)²`. Only positions with
    the window inside of the image count. See Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error
    visibility to structural similarity", 2004.

    Args:
        data_range: the difference of the largest and the smallest possible value: 1 for images in [0, 1], 255 for
            uint8.
        window: the width of the window in pixels, odd.
        sigma: the standard deviation of the window in pixels.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> image = jnp.linspace(0.0, 1.0, 16 * 16).reshape(1, 16, 16, 1)
        >>> SSIM().update(target=image, preds=image).compute().item()
        1.0
    """

    data_range: float = static_field(default=1.0)
    window: int = static_field(default=11, kw_only=True)
    sigma: float = static_field(default=1.5, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        _check_range(self.data_range, "SSIM")
        if self.window < 1 or self.window % 2 == 0 or self.sigma <= 0:
            raise ValueError(
                f"SSIM: window={self.window} must be odd and positive, and sigma={self.sigma} must be positive."
            )

    def values(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """The similarity of each image, `(B,)`.

        Args:
            target: `(B, H, W)` or `(B, H, W, C)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ, or the images are smaller than the window.
        """
        x, y = match_real(target, preds, "SSIM")
        if x.ndim not in (3, 4) or min(x.shape[1:3]) < self.window:
            raise ValueError(
                f"SSIM: images of shape {x.shape} must have the shape (batch, height, width) or (batch, height, width, "
                f"channels), with height and width of at least window={self.window}."
            )
        # Centred, because the variances are differences of squares. The means are centred back below.
        centre = 0.5 * self.data_range
        x, y = x - centre, y - centre
        means = jnp.stack([x, y, x * x, y * y, x * y])
        for axis in (2, 3):
            means = self._blurred(means, axis)
        mx, my, xx, yy, xy = means
        vx, vy, covariance = xx - mx * mx, yy - my * my, xy - mx * my
        mx, my = mx + centre, my + centre
        c1, c2 = (0.01 * self.data_range) ** 2, (0.03 * self.data_range) ** 2
        similarity = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        return jnp.mean(similarity, axis=tuple(range(1, similarity.ndim)))

    def _blurred(self, stack: jax.Array, axis: int) -> jax.Array:
        place = np.arange(self.window) - self.window // 2
        kernel = np.exp(-0.5 * (place / self.sigma) ** 2)
        kernel = (kernel / kernel.sum()).astype(stack.dtype)
        size = stack.shape[axis] - self.window + 1
        # Sums of slices: a convolution would round to TF32 or bfloat16 on GPUs and TPUs.
        parts = (jax.lax.slice_in_dim(stack, k, k + size, axis=axis) * kernel[k] for k in range(self.window))
        return sum(parts, jnp.zeros((), stack.dtype))


def _check_range(data_range: float, what: str) -> None:
    if not data_range > 0:
        raise ValueError(f"{what}: data_range={data_range!r} must be positive.")


PeakSignalNoiseRatio = PSNR
StructuralSimilarity = SSIM
