"""Sparse inputs train, evaluate and predict as the dense ones do, and the whole never becomes dense."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from boring_modules import High, assert_same_bits, host, regression, trainer_of, weights

X, Y = regression(22)
X = np.where(np.abs(X) > 0.5, X, 0).astype(np.float32)


@pytest.mark.parametrize("strategy", ["jit", "eager", "data_parallel"])
def test_sparse_inputs_train_as_dense_ones(strategy):
    sparse, dense = (trainer_of(High, strategy=strategy) for _ in range(2))
    for trainer, x in ((sparse, scipy.sparse.csr_matrix(X)), (dense, X)):
        trainer.fit(x, Y, sample_weight=weights(22), batch_size=8, epochs=2, steps_per_execution=1, verbose=0)
    assert_same_bits(host(sparse.state), host(dense.state))
    matrix = scipy.sparse.coo_array(X)
    assert sparse.evaluate(matrix, Y, verbose=0) == dense.evaluate(X, Y, verbose=0)
    np.testing.assert_array_equal(sparse.predict(matrix, batch_size=5), dense.predict(X, batch_size=5))


def test_sparse_inputs_run_several_steps_in_one_execution():
    sparse, dense = trainer_of(High), trainer_of(High)
    for trainer, x in ((sparse, scipy.sparse.csr_array(X)), (dense, X)):
        trainer.fit(x, Y, batch_size=4, epochs=2, steps_per_execution=4, validation_split=0.3, verbose=0)
    for ours, theirs in zip(host(sparse.state), host(dense.state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)  # a loop over rows on the device sums otherwise
    np.testing.assert_allclose(sparse.history.history["val_loss"], dense.history.history["val_loss"], rtol=1e-5)


def test_sparse_labels_train_as_dense_ones():
    y = np.where(Y > 0, Y, 0)
    sparse, dense = trainer_of(High), trainer_of(High)
    for trainer, labels in ((sparse, scipy.sparse.csr_array(y)), (dense, y)):
        trainer.fit(X, labels, batch_size=8, steps_per_execution=1, verbose=0)
    assert_same_bits(host(sparse.state), host(dense.state))


def test_one_sparse_batch_trains():
    sparse, dense = trainer_of(High), trainer_of(High)
    sparse.train_on_batch(scipy.sparse.csr_array(X), Y)
    dense.train_on_batch(X, Y)
    assert_same_bits(host(sparse.state), host(dense.state))
