"""What goes in comes out: every leaf type, bit for bit."""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elegy.checkpoint.store import read_metadata, restore, save
from elegy.errors import CheckpointError
from elegy.pytree import Pytree

JAX_DTYPES = [
    "bool", "int4", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "bfloat16", "float32",
    "complex64", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


def bits(value) -> bytes:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value).tobytes()


def assert_same(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array) == isinstance(e, jax.Array)
        if not isinstance(e, jax.Array):
            assert type(a) is type(e)
        if hasattr(e, "dtype"):
            assert (a.dtype, a.shape) == (e.dtype, e.shape)
            assert bits(a) == bits(e)
        else:
            assert a == e or (math.isnan(a) and math.isnan(e))


def roundtrip(tmp_path: Path, tree, metadata=None):
    path = tmp_path / "ckpt"
    save(path, tree, metadata or {})
    restored, found = restore(path, tree)
    assert found == (metadata or {})
    return restored


@pytest.mark.parametrize("dtype", JAX_DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_array_types(tmp_path, dtype, shape):
    values = np.arange(math.prod(shape)).reshape(shape).astype(jnp.dtype(dtype))
    tree = {"jax": jnp.asarray(values), "numpy": values}
    assert_same(roundtrip(tmp_path, tree), tree)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64", "complex128"])
def test_numpy_keeps_64_bits_where_jax_has_32(tmp_path, dtype):
    tree = {"a": np.array([1, 2**40 + 1], dtype), "scalar": np.dtype(dtype).type(2**40 + 1)}
    assert_same(roundtrip(tmp_path, tree), tree)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
def test_typed_keys(tmp_path, impl, shape):
    key = jax.random.key(7, impl=impl)
    key = jax.random.split(key, shape) if shape else key
    restored = roundtrip(tmp_path, {"key": key})["key"]
    assert restored.dtype == key.dtype
    assert jax.random.key_impl(restored) == impl
    assert bits(restored) == bits(key)
    flat, _ = restore(tmp_path / "ckpt", None)
    assert flat["key"].dtype == key.dtype


@pytest.mark.parametrize(
    "value", [True, False, 0, -1, 10**40, 0.1, -0.0, math.inf, math.nan, 5e-324, 1 + 2j, "", "é\n\ud800", "None"]
)
def test_python_scalars(tmp_path, value):
    restored = roundtrip(tmp_path, {"a": value})["a"]
    assert type(restored) is type(value)
    assert repr(restored) == repr(value)


def test_special_floats_keep_their_bits(tmp_path):
    patterns = np.array([0x80000000, 0x7FC00001, 0xFFC12345, 0x00000001, 0x7F800000, 0], np.uint32)
    tree = {"jax": jnp.asarray(patterns).view(jnp.float32), "all_minus_zero": np.full(8, -0.0, np.float32)}
    assert_same(roundtrip(tmp_path, tree), tree)


class Stats(Pytree):
    mean: jax.Array
    count: int
    nothing: None = None


class Pair(NamedTuple):
    left: object
    right: object


def test_structures_and_an_optimizer_state(tmp_path):
    params = {"layer/0": {"w": jnp.ones((3, 2)), "b": jnp.zeros(2, jnp.bfloat16)}, "empty": {}, "none": None}
    tree = {
        "stats": Stats(jnp.arange(3.0), 4),
        "optimizer": optax.chain(optax.clip(1.0), optax.adam(optax.constant_schedule(0.1))).init(params),
        "pair": Pair([jnp.int32(1), ()], (np.float32(2.5),)),
    }
    restored = roundtrip(tmp_path, {"params": params, **tree})
    assert isinstance(restored["stats"], Stats)
    assert restored["stats"].count == 4
    expected = jax.tree.leaves({"params": params, **tree})
    for actual, value in zip(jax.tree.leaves(restored), expected, strict=True):
        assert bits(actual) == bits(value)
    assert set(restore(tmp_path / "ckpt", None)[0]) >= {"params/layer/0/w", "stats/mean", "pair/left/0"}


@pytest.mark.parametrize("tree", [{}, None, [], {"a": None, "b": {}}, np.float32(1), 3, jax.random.key(1)])
def test_trees_with_few_leaves(tmp_path, tree):
    save(tmp_path / "ckpt", tree, {})
    target = tree if jax.tree.leaves(tree) else {"a": None}
    assert_same(restore(tmp_path / "ckpt", target)[0], target)
    assert len(restore(tmp_path / "ckpt", None)[0]) == len(jax.tree.leaves(tree))


def test_paths_that_are_written_alike_do_not_collide(tmp_path):
    tree = {"a/b": np.int32(1), "a": {"b": np.int32(2)}, "a%2Fb": np.int32(3), "..": {"..": np.int32(4)}, "": 5}
    assert_same(roundtrip(tmp_path, tree), tree)
    assert len(restore(tmp_path / "ckpt", None)[0]) == 5


DTYPES = [np.dtype(d) for d in ("bool", "int8", "uint16", "int32", "float16", "float32")] + [
    np.dtype(ml_dtypes.bfloat16)
]


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = math.prod(shape) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    raw = np.frombuffer(data, np.uint8)
    value = (raw & 1).astype(bool).reshape(shape) if dtype.name == "bool" else raw.view(dtype).reshape(shape)
    return draw(st.sampled_from([np.array, jnp.array]))(value)


LEAVES = st.one_of(arrays(), st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(tree=TREES)
def test_any_tree(tmp_path_factory, tree):
    tree = {"root": tree}
    assert_same(roundtrip(tmp_path_factory.mktemp("any"), tree), tree)


def test_metadata_comes_back(tmp_path):
    metadata = {"step": 12, "loss": [0.1, math.inf], "name": "é", "done": False, "best": None, "nested": {"a": {}}}
    save(tmp_path / "ckpt", {}, metadata)
    assert restore(tmp_path / "ckpt", None)[1] == metadata
    assert read_metadata(tmp_path / "ckpt") == metadata


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"a": {1: 2}}, r"metadata\['a'\]\[1\]"),
        ({"a": [np.float32(1)]}, r"metadata\['a'\]\[0\]"),
        ({"a": {1, 2}}, "a set"),
        ([1], "must be a dict"),
    ],
)
def test_metadata_that_json_would_change_is_refused(tmp_path, metadata, named):
    with pytest.raises(CheckpointError, match=named):
        save(tmp_path / "ckpt", {}, metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        (object(), "not an array"),
        (lambda: 0, "not an array"),
        (np.array(["a"]), "dtype"),
        (np.array([object()], object), "dtype"),
        (np.array([1.0], ">f4"), "dtype"),
        (np.ma.masked_array([1.0], [True]), "not an array"),
        (jax.ShapeDtypeStruct((2,), np.float32), "without values"),
    ],
)
def test_leaves_that_cannot_be_stored_are_listed(tmp_path, leaf, why):
    with pytest.raises(CheckpointError, match=rf"(?s)({why}.*good/x|good/x.*{why})"):
        save(tmp_path / "ckpt", {"good": {"x": leaf}}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_donated_array_is_named(tmp_path):
    x = jnp.ones(4)
    jax.jit(lambda v: v + 1, donate_argnums=0)(x)
    with pytest.raises(CheckpointError, match="w: the array was deleted"):
        save(tmp_path / "ckpt", {"w": x}, {})


def test_importing_the_store_does_not_import_orbax(run_devices):
    assert run_devices(1, "import elegy.checkpoint; print('orbax' in sys.modules)").strip() == "False"
