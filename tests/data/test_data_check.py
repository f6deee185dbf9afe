import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from elegy.data.check import check_finite

BAD = np.array([1.0, np.nan, np.inf, -np.inf])


@pytest.mark.parametrize(
    "batch",
    [
        np.ones(4),
        (np.ones(4), np.arange(4), None),
        {"a": np.array([True])},
        np.array([np.finfo(np.float32).max]),
        np.ones(4, ml_dtypes.bfloat16),
        jnp.ones(4),
    ],
)
def test_finite_data_passes(batch):
    check_finite(batch)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_counted(dtype):
    with pytest.raises(ValueError, match=r"inputs has 3 of 4\. .*turn check_inputs off"):
        check_finite(BAD.astype(dtype))


def test_every_path_is_named():
    with pytest.raises(ValueError, match=r": inputs/a/1 has 3 of 4, labels has 1 of 1\."):
        check_finite(({"a": [np.ones(4), jnp.asarray(BAD)]}, np.array([np.nan]), np.ones(1)))
