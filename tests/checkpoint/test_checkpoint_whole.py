"""Whole objects by pickle: never without being asked."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.checkpoint import save
from elegy.checkpoint.whole import load, save_pickle
from elegy.errors import CheckpointError


def test_an_object_with_functions_and_arrays(tmp_path):
    offset = 3
    save_pickle(tmp_path / "a.pkl", {"f": lambda x: x + offset, "w": jnp.ones(2), "key": jax.random.key(1)})
    loaded = load(tmp_path / "a.pkl", allow_code=True)
    assert loaded["f"](1) == 4
    np.testing.assert_array_equal(loaded["w"], np.ones(2))
    assert loaded["key"] == jax.random.key(1)
    assert os.listdir(tmp_path) == ["a.pkl"]


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("allow", [{}, {"allow_code": True}])
def test_a_checkpoint_is_no_pickle(tmp_path, allow):
    save(tmp_path / "step_00000001", {"w": jnp.ones(2)}, {})
    for path in (tmp_path / "step_00000001", tmp_path):
        with pytest.raises(CheckpointError, match=r"is a directory.*trainer\.restore\(path\).*load_weights"):
            load(path, **allow)


@pytest.mark.parametrize("allow", [{}, {"allow_code": False}, {"allow_code": 1}, {"allow_code": None}])
def test_refused_before_a_byte_is_unpickled(tmp_path, allow):
    marker = str(tmp_path / "executed")
    save_pickle(tmp_path / "a.pkl", Bomb(marker))
    with pytest.raises(CheckpointError, match=r"runs whatever code.*allow_code=True"):
        load(tmp_path / "a.pkl", **allow)
    assert not os.path.exists(marker)
    load(tmp_path / "a.pkl", allow_code=True)
    assert os.path.exists(marker)


def test_damage_is_found_before_anything_is_unpickled(tmp_path):
    marker = str(tmp_path / "executed")
    path = tmp_path / "a.pkl"
    save_pickle(path, Bomb(marker))
    data = path.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged|not written by"):
            load(path, allow_code=True)
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        load(path, allow_code=True)
    assert not os.path.exists(marker)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pkl cannot be read"):
        load(tmp_path / "none.pkl", allow_code=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/a\.pkl could not be written"):
        save_pickle(tmp_path / "file" / "a.pkl", 1)
    with pytest.raises(CheckpointError, match="cannot be pickled"):
        save_pickle(tmp_path / "a.pkl", threading.Lock())
    assert os.listdir(tmp_path) == ["file"]
