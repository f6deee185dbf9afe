"""Restoring into a target: placement, and every mismatch by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boring_modules import High

import elegy as eg
from elegy.checkpoint import store
from elegy.checkpoint.match import fill
from elegy.checkpoint.store import restore, save
from elegy.errors import CheckpointError

TREE = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.int32(5),
    "key": jax.random.key(1),
    "n": 3,
}


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "ckpt", TREE, {"step": 5})
    return tmp_path / "ckpt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.zeros((3, 2), np.float32)}, r"w: array float32\[2,3\] in the file, array float32\[3,2\] in the"),
        ({"w": np.zeros((2, 3), np.float16)}, r"w: array float32\[2,3\] in the file, array float16\[2,3\] in the"),
        ({"w": np.zeros((6,), np.float32)}, r"w: .*float32\[6\] in the target"),
        ({"step": 5}, r"step: array int32\[\] in the file, Python int in the target"),
        ({"n": 3.0}, r"n: Python int in the file, Python float in the target"),
        ({"n": True}, r"n: Python int in the file, Python bool in the target"),
        ({"key": jax.random.key(1, impl="rbg")}, r"key: random key key<fry>\[\] in the file, random key key<rbg>"),
        ({"key": jax.random.key_data(jax.random.key(1))}, r"key: random key .* in the file, array uint32\[2\]"),
        ({"new": np.zeros(1)}, r"new: missing in the file; the target has array float64\[1\]"),
    ],
)
def test_every_mismatch_is_listed_by_path(path, change, message):
    with pytest.raises(CheckpointError, match=message):
        restore(path, TREE | change)
    with pytest.warns(UserWarning, match=message):
        loaded, _ = restore(path, TREE | change, strict=False)
    ((name, own),) = change.items()
    assert loaded[name] is own
    assert all(np.array_equal(loaded[k], TREE[k]) for k in TREE if k not in (name, "key"))
    # An independent second path: the same rules for values that are already in memory.
    flat, _ = restore(path, None)
    with pytest.raises(CheckpointError, match=message):
        fill(TREE | change, flat)


def test_all_mismatches_appear_in_one_message(path):
    target = {"w": np.zeros(1, np.float32), "extra": np.zeros(2), "key": TREE["key"]}
    with pytest.raises(CheckpointError) as caught:
        restore(path, target)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == ["extra", "w", "n", "step"]


def test_loading_what_fits_needs_values_elsewhere(path):
    target = jax.eval_shape(lambda: {"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)})
    with pytest.raises(CheckpointError, match="no values to keep for b"):
        restore(path, target, strict=False)


def test_abstract_targets(path):
    target = {
        "w": jax.ShapeDtypeStruct((2, 3), np.float32),
        "step": jax.ShapeDtypeStruct((), np.int32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "n": 0,
    }
    loaded, metadata = restore(path, target)
    assert metadata == {"step": 5}
    assert isinstance(loaded["w"], jax.Array)
    assert not loaded["w"].committed
    assert not loaded["key"].committed
    np.testing.assert_array_equal(loaded["w"], TREE["w"])
    assert loaded["key"] == TREE["key"]
    assert loaded["n"] == 3


def test_placement_follows_the_target(path):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    target = {
        "w": jax.device_put(jnp.zeros((2, 3)), place),
        "step": jnp.zeros((), jnp.int32),
        "key": jax.ShapeDtypeStruct((), TREE["key"].dtype, sharding=place),
        "n": 0,
    }
    loaded, _ = restore(path, target)
    assert loaded["w"].sharding == place
    assert loaded["w"].committed
    assert loaded["key"].sharding == place
    assert not loaded["step"].committed


def test_restored_arrays_compile_nothing_anew(path):
    traces = []

    @jax.jit
    def step(tree):
        traces.append(1)
        return jax.tree.map(lambda x: x, tree)

    fresh = {"w": jnp.zeros((2, 3)), "step": jnp.zeros((), jnp.int32), "key": jax.random.key(0), "n": 0}
    step(fresh)
    before = step._cache_size()
    step(restore(path, fresh)[0])
    assert step._cache_size() == before


def test_64_bits_into_jax_without_x64(tmp_path):
    save(tmp_path / "ckpt", {"a": np.ones(2, np.float64)}, {})
    with pytest.raises(CheckpointError, match="jax_enable_x64"):
        restore(tmp_path / "ckpt", {"a": jax.ShapeDtypeStruct((2,), np.float64)})


def test_a_target_of_functions_is_refused(path):
    with pytest.raises(CheckpointError, match=r"w: a builtins\.function"):
        restore(path, TREE | {"w": lambda: 0})


def test_another_kind(path):
    with pytest.raises(CheckpointError, match="kind 'trainer', but the kind 'weights'"):
        restore(path, None, kind="weights")
    with pytest.raises(CheckpointError, match="kind 'trainer'"):
        store.read_metadata(path, kind="weights")


def test_a_tree_of_ones_own_is_no_trainers_checkpoint(tmp_path):
    save(tmp_path / "own", {"w": np.ones((3, 2), np.float32)}, {"step": 1, "note": "x"})
    fresh = eg.Trainer(High())
    fresh.init_on_batch(np.ones((4, 3), np.float32))
    with pytest.raises(CheckpointError, match=r"own: this is not the checkpoint .*: its metadata lack epoch, .*logs"):
        fresh.restore(tmp_path / "own")
    assert fresh.step == 0
    metadata = store.read_metadata(tmp_path / "own")
    assert metadata == {"step": 1, "note": "x"}
    with pytest.raises(KeyError, match="other"):
        metadata["other"]


def test_loading_across_placements_on_four_devices(run_devices):
    run_devices(
        4,
        """
        mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        split, whole = jax.NamedSharding(mesh, jax.P("d")), jax.NamedSharding(mesh, jax.P())
        one = jax.sharding.SingleDeviceSharding(jax.devices()[2])
        plain = {
            "w": np.arange(32, dtype=np.float32).reshape(8, 4),
            "k": jax.random.split(jax.random.key(0), 4),
            "e": np.zeros((0, 4), np.int32),
        }
        for source in (split, whole, one):
            save("ckpt", jax.device_put(plain, source), {})
            for place in (split, whole, one):
                target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), plain)
                out, _ = restore("ckpt", target)
                for name in plain:
                    assert out[name].sharding.is_equivalent_to(place, out[name].ndim), name
                    assert out[name].dtype == plain[name].dtype
                np.testing.assert_array_equal(out["w"], plain["w"])
                assert (out["k"] == plain["k"]).all()
            flat, _ = restore("ckpt", None)
            np.testing.assert_array_equal(flat["w"], plain["w"])
        """,
    )
