"""Weights by path, and safetensors against the library's own readers and writers."""

import builtins
import os
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy

from elegy.checkpoint.match import fill
from elegy.checkpoint.store import restore, save
from elegy.checkpoint.weights import flatten, load_safetensors, rename, save_safetensors, select
from elegy.errors import CheckpointError

FLAT = {"enc/w": 1, "enc/b": 2, "encoder/w": 3, "step": 4}


@pytest.mark.parametrize(
    ("prefix", "keep", "expected"),
    [
        ("enc", False, {"w": 1, "b": 2}),
        ("enc/", False, {"w": 1, "b": 2}),
        ("encoder", True, {"encoder/w": 3}),
    ],
)
def test_select(prefix, keep, expected):
    assert select(FLAT, prefix, keep_prefix=keep) == expected


def test_select_nothing():
    with pytest.raises(CheckpointError, match=r"nothing lies below 'dec'.*enc, encoder, step"):
        select(FLAT, "dec")


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"enc": "new"}, {"new/w": 1, "new/b": 2, "encoder/w": 3, "step": 4}),
        ({"enc": "x/y", "enc/b": "z", "step": "t"}, {"x/y/w": 1, "z": 2, "encoder/w": 3, "t": 4}),
        ({"enc": "encoder", "encoder": "enc"}, {"encoder/w": 1, "encoder/b": 2, "enc/w": 3, "step": 4}),
        (str.upper, {"ENC/W": 1, "ENC/B": 2, "ENCODER/W": 3, "STEP": 4}),
    ],
)
def test_rename(mapping, expected):
    assert rename(FLAT, mapping) == expected


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"nowhere": "x"}, "no path is or lies below nowhere"),
        ({"enc": "encoder"}, "both 'enc/w' and 'encoder/w' would be renamed to 'encoder/w'"),
        (lambda path: "same", "would be renamed to 'same'"),
    ],
)
def test_rename_refuses(mapping, message):
    with pytest.raises(CheckpointError, match=message):
        rename(FLAT, mapping)


def test_parameters_of_a_checkpoint_into_another_model(tmp_path):
    old = {"params": {"enc": {"w": jnp.arange(4.0)}, "head": {"w": jnp.ones(3)}}, "step": jnp.int32(7)}
    save(tmp_path / "ckpt", old, {})
    flat, _ = restore(tmp_path / "ckpt", None)
    new = {"backbone": {"w": jnp.zeros(4)}, "head": {"w": jnp.zeros(5)}}
    with pytest.warns(UserWarning, match=r"head/w: array float32\[3\] in the file, array float32\[5\]"):
        loaded = fill(new, rename(select(flat, "params"), {"enc": "backbone"}), strict=False)
    np.testing.assert_array_equal(loaded["backbone"]["w"], np.arange(4))
    assert isinstance(loaded["backbone"]["w"], jax.Array)
    assert loaded["head"]["w"] is new["head"]["w"]


DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
    "float64", "complex64", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_roundtrip(tmp_path, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    flat = {
        "a/w": np.arange(6).reshape(2, 3).astype(kind),
        "transposed": np.arange(6).reshape(2, 3).astype(kind).T,
        "scalar": np.ones((), kind),
        "empty": np.ones((0, 3), kind),
    }
    save_safetensors(tmp_path / "w.safetensors", flat)
    loaded = load_safetensors(tmp_path / "w.safetensors")
    assert loaded.keys() == flat.keys()
    for name, value in flat.items():
        assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape)
        assert loaded[name].tobytes() == value.tobytes()
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_safetensors_of_and_for_others(tmp_path):
    tree = {"w": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "b": {"c": jnp.arange(3)}}
    save_safetensors(tmp_path / "ours", flatten(tree), {"by": "me"})
    theirs = safetensors.flax.load_file(tmp_path / "ours")
    assert theirs.keys() == {"w", "b/c"}
    np.testing.assert_array_equal(theirs["w"], tree["w"])
    with safetensors.safe_open(tmp_path / "ours", "numpy") as file:
        assert file.metadata() == {"by": "me"}
    safetensors.numpy.save_file({"b/c": np.arange(3, dtype=np.int32)}, tmp_path / "theirs")
    with pytest.warns(UserWarning, match="w: missing"):
        loaded = fill(tree, load_safetensors(tmp_path / "theirs"), strict=False)
    assert loaded["b"]["c"].dtype == jnp.int32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (jax.random.key(0), "k: random key"),
        (1.0, "k: Python float is not an array"),
        (np.ones(1, np.complex128), "k: the format has no complex128"),
        (object(), "k: a builtins.object"),
    ],
)
def test_safetensors_hold_arrays_only(tmp_path, value, message):
    with pytest.raises(CheckpointError, match=message):
        save_safetensors(tmp_path / "w", {"good": np.ones(1), "k": value})
    assert os.listdir(tmp_path) == []


def test_safetensors_files_that_are_none(tmp_path):
    (tmp_path / "bad").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for name in ("bad", "absent"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be read as safetensors"):
            load_safetensors(tmp_path / name)


def test_without_safetensors(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("safetensors")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match="needs the library 'safetensors': install it with"):
        load_safetensors(tmp_path / "w")
    with pytest.raises(ImportError, match="needs the library 'safetensors'"):
        save_safetensors(tmp_path / "w", {})
