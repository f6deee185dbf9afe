"""Two processes write one checkpoint, and fail as one."""

import os
import socket

import numpy as np

from elegy.checkpoint import is_intact
from elegy.checkpoint.store import restore

WORKER = """
import os
from elegy.checkpoint.background import AsyncSaver
from elegy.errors import CheckpointError

rank = int(sys.argv[1])
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, rank, initialization_timeout=300)
mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
split, whole = jax.NamedSharding(mesh, jax.P("d")), jax.NamedSharding(mesh, jax.P())
values = np.arange(8, dtype=np.float32).reshape(4, 2)
keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 2)))

def placed(value, place):
    return jax.make_array_from_callback(value.shape, place, lambda index: value[index])

tree = {
    "split": placed(values, split),
    "whole": placed(values, whole),
    "keys": jax.random.wrap_key_data(placed(keys, split)),
    "empty": placed(np.zeros((0, 2), np.float32), whole),
    "host": np.ones(3),
    "n": 4,
}
save("run/step_00000001", tree, {"step": 1})
with AsyncSaver() as saver:
    saver.save("run/step_00000002", tree, {"step": 2})
for place in (split, whole):
    target = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) if isinstance(x, jax.Array) else x
        for name, x in tree.items()
    }
    loaded, metadata = restore("run/step_00000002", target)
    assert metadata == {"step": 2}
    for name in ("split", "whole"):
        assert loaded[name].sharding.is_equivalent_to(place, 2)
        for shard in loaded[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, values[shard.index])
    for shard in jax.random.key_data(loaded["keys"]).addressable_shards:
        np.testing.assert_array_equal(shard.data, keys[shard.index])

for bad in ("file/ckpt", "run/taken"):
    try:
        save(bad, tree, {})
    except CheckpointError as error:
        print("refused:", str(error).replace(os.getcwd(), ""), flush=True)
"""


def test_two_processes(tmp_path, start):
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "taken" / "by").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    workers = [start(1, WORKER, str(rank), port) for rank in range(2)]
    outputs = [worker.communicate(timeout=600) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    leader, other = ([line for line in out.splitlines() if line.startswith("refused")] for out, _ in outputs)
    assert "/file/ckpt" in leader[0]
    assert "other things than a checkpoint (by)" in leader[1]
    assert all("failed in process 0" in line for line in other)
    assert len(leader) == len(other) == 2
    assert sorted(os.listdir(tmp_path / "run")) == ["step_00000001", "step_00000002", "taken"]
    for step in (1, 2):
        path = tmp_path / "run" / f"step_{step:08d}"
        assert is_intact(path)
        flat, metadata = restore(path, None)
        assert metadata == {"step": step}
        np.testing.assert_array_equal(flat["split"], np.arange(8).reshape(4, 2))
        assert flat["keys"].shape == (2,)
