"""Two processes see every example of a data set once, in training and in an evaluation."""

import json
import socket
from pathlib import Path

import pytest

ROWS = 16
SCRIPT = """
    import json, sys
    port, process, folder = sys.argv[1:]
    process = int(process)
    sys.path.insert(0, folder)
    import grain
    import optax
    import elegy as eg
    from map_style import Rows

    eg.distributed.initialize("127.0.0.1:" + port, 2, process, initialization_timeout=300)
    values = 2.0 ** np.arange(16, dtype=np.float32)[:, None]  # the sum of some of them says which
    rows = Rows(values, values)

    class Same(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params=np.ones(1, np.float32))

        def apply(self, key, inputs, training):
            return inputs * self.params, self

    def value(preds):
        return preds[:, 0]

    kinds = {
        "map-style": (rows, 4),
        "short last batch": (rows, 5),
        "threads": (eg.data.Examples(rows, workers=2), 4),
        "processes": (eg.data.Examples(rows, workers=1, kind="processes"), 4),
        "split": (eg.distributed.Split([(values[i : i + 5], values[i : i + 5]) for i in range(0, 16, 5)]), None),
        "grain part": (grain.MapDataset.source(rows)[process::2].shuffle(seed=1).batch(3), None),
    }
    found = {}
    for name, (data, size) in kinds.items():
        trainer = eg.Trainer(Same(), loss=value, optimizer=optax.sgd(0.0), strategy="data_parallel")
        losses = trainer.fit(data, batch_size=size, epochs=2, verbose=0).history["loss"]
        found[name] = [*losses, trainer.evaluate(data, batch_size=size, verbose=0)["loss"]]
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_see_every_example_once(start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [start(1, SCRIPT, port, str(i), str(Path(__file__).parent)) for i in range(2)]
    printed = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    for out, _ in printed:
        for name, values in json.loads(out.splitlines()[-1]).items():
            assert values == pytest.approx([(2**ROWS - 1) / ROWS] * 3, rel=1e-6), name
