"""Two processes that are given the same data see every example once."""

import json
import socket
from pathlib import Path

import flax.linen as nn
import numpy as np
import optax
import pytest
from sources import BATCH, ROWS, W, X, Y

import elegy as eg

pytestmark = pytest.mark.slow  # `test_data_table.py` has one process

KINDS = ["pandas", "polars", "pyarrow", "memory map", "h5py", "zarr", "hugging face"]

CODE = """
import json
from pathlib import Path
port, index, tests = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, tests)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
import datasets.distributed
import flax.linen as nn
import optax
import sources
import elegy as eg

def fit(data, batch_size):
    trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.01), strategy="sharded")
    trainer.fit(**data, batch_size=batch_size, epochs=2, verbose=0)
    return np.asarray(trainer.state.params["kernel"]).ravel().tolist()

found = {}
for kind in sys.argv[4:]:
    folder = Path(f"{kind} {index}")
    folder.mkdir()
    found[kind] = fit(sources.TABLES[kind].make(folder), sources.BATCH)
rows = datasets.distributed.split_dataset_by_node(sources.stream(), index, 2)
found["stream"] = fit({"data": rows, **sources.KEYS}, sources.ROWS)
print(json.dumps(found))
"""


def fit(**options):
    trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.01))
    trainer.fit(X, Y, sample_weight=W, epochs=2, verbose=0, **options)
    return np.asarray(trainer.state.params["kernel"]).ravel()


def test_two_processes_train_as_one_does_on_all_examples(start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [start(1, CODE, port, str(i), str(Path(__file__).parent), *KINDS) for i in range(2)]
    texts = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [err[-3000:] for _, err in texts]
    whole, all_rows = fit(batch_size=BATCH), fit(batch_size=ROWS)
    for out, _ in texts:
        found = json.loads(out.splitlines()[-1])
        for kind in KINDS:  # sums over processes are taken in another order
            np.testing.assert_allclose(found[kind], whole, rtol=2e-4, atol=2e-5, err_msg=kind)
        np.testing.assert_allclose(found["stream"], all_rows, rtol=2e-4, atol=2e-5)
