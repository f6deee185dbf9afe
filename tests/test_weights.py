"""Weights of other programs: PyTorch's layout into every library and back, shards, the Hub's cache, bad tables."""

from __future__ import annotations

import json
import re
import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import elegy as eg
from elegy.errors import CheckpointError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 6, 6, 3)).astype(np.float32)

# The state dict of nn.Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), ReLU, mean over pixels, Linear(4, 2)).
TORCH = {
    "features.0.weight": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),  # out, in, height, width
    "features.0.bias": RNG.normal(size=4).astype(np.float32),
    "features.1.weight": RNG.normal(size=4).astype(np.float32),
    "features.1.bias": RNG.normal(size=4).astype(np.float32),
    "features.1.running_mean": RNG.normal(size=4).astype(np.float32),
    "features.1.running_var": RNG.uniform(0.5, 2, size=4).astype(np.float32),
    "features.1.num_batches_tracked": np.array(7),
    "classifier.weight": RNG.normal(size=(2, 4)).astype(np.float32),  # out, in
    "classifier.bias": RNG.normal(size=2).astype(np.float32),
}


def by_hand(x, state=TORCH):
    """What PyTorch computes, in NumPy: correlations of channels-last images, then the layers in order."""
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))  # n, h, w, channels, 3, 3
    x = np.einsum("nhwcij,ocij->nhwo", patches, state["features.0.weight"]) + state["features.0.bias"]
    x = (x - state["features.1.running_mean"]) / np.sqrt(state["features.1.running_var"] + 1e-5)
    x = np.maximum(x * state["features.1.weight"] + state["features.1.bias"], 0).mean((1, 2))
    return x @ state["classifier.weight"].T + state["classifier.bias"]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = nn.Conv(4, (3, 3), padding="VALID", name="conv")(x)
        x = nn.BatchNorm(use_running_average=not training, name="norm")(x)
        return nn.Dense(2, name="head")(nn.relu(x).mean((1, 2)))


class NNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.norm = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


class Equinox(eqx.Module):
    """Its layers have PyTorch's layouts, and no batch normalisation here."""

    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.conv, self.head = eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])

    def __call__(self, x):
        return self.head(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))).mean((1, 2)))


def haiku(x):
    x = hk.Conv2D(4, 3, padding="VALID", name="conv")(x)
    stats = {name: hk.get_state(name, (4,), init=jnp.zeros) for name in ("mean", "var")}
    scale, offset = (hk.get_parameter(name, (4,), init=jnp.ones) for name in ("scale", "offset"))
    x = (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5) * scale + offset
    return hk.Linear(2, name="head")(jax.nn.relu(x).mean((1, 2)))


def functions_init(key):
    shapes = {"conv": ((3, 3, 3, 4), (4,)), "head": ((4, 2), (2,)), "norm": ((4,), (4,))}
    params = {name: {"w": jnp.zeros(w), "b": jnp.zeros(b)} for name, (w, b) in shapes.items()}
    return params, {"mean": jnp.zeros(4), "var": jnp.zeros(4)}


def functions_apply(params, x, state):
    x = jax.lax.conv_general_dilated(
        x, params["conv"]["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = (x + params["conv"]["b"] - state["mean"]) / jnp.sqrt(state["var"] + 1e-5)
    x = jax.nn.relu(x * params["norm"]["w"] + params["norm"]["b"]).mean((1, 2))
    return x @ params["head"]["w"] + params["head"]["b"], state


IGNORE = "*.num_batches_tracked"


def flax_names(norm_stats):
    return {
        "features.0.weight": "params/conv/kernel",
        "features.1.weight": "params/norm/scale",
        "features.0.bias": "params/conv/bias",
        "features.1.bias": "params/norm/bias",
        "features.1.running_*": f"{norm_stats}/norm/*",
        "classifier.weight": "params/head/kernel",
        "classifier.bias": "params/head/bias",
    }


KERNELS = {"*/conv/kernel": (2, 3, 1, 0), "*/head/kernel": (1, 0)}
WEIGHTS = {"*/conv/w": (2, 3, 1, 0), "*/head/w": (1, 0)}
HAIKU_NAMES = {
    "features.0.weight": "params/conv/w",
    "features.0.bias": "params/conv/b",
    "features.1.weight": "params/~/scale",
    "features.1.bias": "params/~/offset",
    "features.1.running_*": "batch_stats/~/*",
    "classifier.weight": "params/head/w",
    "classifier.bias": "params/head/b",
}
FUNCTION_NAMES = {
    "features.0.weight": "params/conv/w",
    "features.0.bias": "params/conv/b",
    "features.1.running_*": "batch_stats/*",
    "features.1.weight": "params/norm/w",
    "features.1.bias": "params/norm/b",
    "classifier.weight": "params/head/w",
    "classifier.bias": "params/head/b",
}

LIBRARIES = {
    "linen": (Linen, True, {"names": flax_names("batch_stats"), "transpose": KERNELS, "ignore": IGNORE}),
    "nnx": (NNX, False, {"names": flax_names("batch_stats"), "transpose": KERNELS, "ignore": IGNORE}),
    "haiku": (
        lambda: hk.without_apply_rng(hk.transform_with_state(haiku)),
        True,
        {"names": HAIKU_NAMES, "transpose": WEIGHTS, "ignore": IGNORE},
    ),
    "functions": (
        lambda: (functions_init, functions_apply),
        True,
        {"names": FUNCTION_NAMES, "transpose": WEIGHTS, "ignore": IGNORE},
    ),
}


@pytest.mark.parametrize(
    "library", [pytest.param(name, marks=[pytest.mark.slow] if name in ("nnx", "haiku") else []) for name in LIBRARIES]
)
def test_a_state_dict_of_pytorch_predicts_the_same_in_every_library_and_goes_back(library, tmp_path):
    make, needs_inputs, table = LIBRARIES[library]
    save_file(TORCH, tmp_path / "torch.safetensors")
    module = make()
    variables = eg.weights.load(tmp_path / "torch.safetensors", module, *([X] if needs_inputs else []), **table)
    trainer = eg.Trainer(module, variables=variables)
    np.testing.assert_allclose(trainer.predict(X), by_hand(X), rtol=1e-4, atol=1e-5)
    eg.weights.save(tmp_path / "back.safetensors", trainer, **table)
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == {name for name in TORCH if not name.endswith("tracked")}
    for name, array in back.items():
        np.testing.assert_array_equal(array, TORCH[name], err_msg=name)


def test_equinox_has_the_axes_of_pytorch():
    source = {"conv.weight": TORCH["features.0.weight"], "conv.bias": TORCH["features.0.bias"][:, None, None]}
    source |= {"head.weight": TORCH["classifier.weight"], "head.bias": TORCH["classifier.bias"]}
    module = eg.weights.load(source, Equinox(), names={"*": "params/*"})
    plain = {"features.1.running_mean": 0.0, "features.1.running_var": 1 - 1e-5}
    plain |= {"features.1.weight": 1.0, "features.1.bias": 0.0}
    np.testing.assert_allclose(eg.Trainer(module).predict(X), by_hand(X, TORCH | plain), rtol=1e-4, atol=1e-5)


SMALL = {"layers.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "layers.0.bias": np.ones(2, np.float32)}
TREE = {"layers_0": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
GOOD = {"names": {"*.*.weight": "*_*/kernel", "*.*.bias": "*_*/bias"}, "transpose": {"*/kernel": (1, 0)}}


def test_stars_keep_what_they_stand_for_in_order():
    loaded = eg.weights.load(SMALL, TREE, **GOOD)
    np.testing.assert_array_equal(loaded["layers_0"]["kernel"], SMALL["layers.0.weight"].T)
    by_function = eg.weights.load(
        SMALL,
        TREE,
        names=lambda name: "layers_0/" + ("bias" if "bias" in name else "kernel"),
        transpose=GOOD["transpose"],
    )
    jax.tree.map(np.testing.assert_array_equal, by_function, loaded)


@pytest.mark.parametrize(
    ("change", "source", "messages"),
    [
        (
            {"names": {"*.*.weight": "*_*/kernel"}},
            {},
            ["layers.0.bias, float32[2]: no pattern", "layers_0/bias, float32[2]: nothing"],
        ),
        ({"names": {**GOOD["names"], "head.*": "head/*"}}, {}, ["'head.*' is never used: it matches no name"]),
        ({"names": {**GOOD["names"], "layers.0.bias": "b"}}, {}, ["'layers.0.bias' is never used: an earlier pattern"]),
        ({"ignore": "head.*"}, {}, ["ignore: 'head.*' matches no name"]),
        ({"keep": "head/*"}, {}, ["keep: 'head/*' matches no path"]),
        ({"transpose": {**GOOD["transpose"], "*/w": (1, 0)}}, {}, ["transpose: '*/w' is the first match of no path"]),
        ({"transpose": {}}, {}, ["layers.0.weight: float32[2,3] for layers_0/kernel, which is float32[3,2]"]),
        ({"transpose": {"*": (1, 0)}}, {}, ["layers.0.bias: `transpose` has 2 axes for layers_0/bias"]),
        ({}, {"layers_0.bias": np.ones(2)}, ["layers_0.bias, float64[2]: no pattern"]),
        (
            {"names": {**GOOD["names"], "other": "layers_0/bias"}},
            {"other": np.ones(2, np.float32)},
            ["other, float32[2]: layers_0/bias is already given by layers.0.bias"],
        ),
        ({}, {"layers.1.bias": np.ones(2, np.float32)}, ["layers.1.bias, float32[2]: the module has no layers_1/bias"]),
        ({}, {"layers.0.bias": np.ones(2, np.float16)}, ["float16 for layers_0/bias, which is float32: `cast=True`"]),
        ({"cast": True}, {"layers.0.bias": np.ones(2, np.int32)}, ["int32 for layers_0/bias cannot be converted"]),
        ({"keep": "*/bias"}, {}, ["layers.0.bias, float32[2]: layers_0/bias is in `keep`"]),
    ],
)
def test_everything_that_does_not_fit_is_listed(change, source, messages):
    with pytest.raises(CheckpointError) as caught:
        eg.weights.load({**SMALL, **source}, TREE, **{**GOOD, **change})
    for message in messages:
        assert message in str(caught.value)
    assert str(caught.value).count("\n") == len(messages)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"names": {"a.*": "b"}}, ValueError, "same number of"),
        ({"names": {"a": 3}}, TypeError, "names is a dict of patterns"),
        ({"names": 3}, TypeError, "names must be a dict"),
        ({"transpose": {"*": (0, 2)}}, ValueError, "must be an order of axes"),
        ({"transpose": {"*": 1}}, ValueError, "must be an order of axes"),
        ({"ignore": 3}, TypeError, "ignore takes patterns"),
    ],
)
def test_wrong_tables(table, error, message):
    with pytest.raises(error, match=message):
        eg.weights.load(SMALL, TREE, **table)


def test_casts_are_made_on_request():
    tree = {"w": jnp.zeros(2, jnp.bfloat16), "n": jnp.zeros(1, jnp.int32)}
    loaded = eg.weights.load({"w": np.array([1.5, 2.5]), "n": np.array([7])}, tree, cast=True)
    assert loaded["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded["w"].astype(float), [1.5, 2.5])
    assert loaded["n"] == 7
    with pytest.raises(CheckpointError, match="int64 for n cannot be converted to int32"):
        eg.weights.load({"w": np.ones(2), "n": np.array([2**40])}, tree, cast=True)
    half = {"w": jnp.zeros(2, jnp.float16)}
    with pytest.raises(CheckpointError, match="float32 for w has values that are not finite in float16"):
        eg.weights.load({"w": np.array([1, 1e6], np.float32)}, half, cast=True)
    loaded = eg.weights.load({"w": np.array([np.inf, 65504], np.float32)}, half, cast=True)
    np.testing.assert_array_equal(loaded["w"], np.array([np.inf, 65504], np.float16))


def test_arrays_of_numpy_keep_64_bits():
    source = {"n": np.array([2**40]), "w": np.array([1 + 2**-40])}
    loaded = eg.weights.load(source, {"n": np.zeros(1, np.int64), "w": np.zeros(1)})
    assert all(loaded[name].dtype == source[name].dtype and loaded[name] == source[name] for name in source)


def test_what_is_loaded_for_a_module_with_adapters_is_a_state():
    """A Trainer with another seed does not initialise it again."""
    source = {
        "base/params/kernel": np.ones((3, 4)),
        "params/kernel/a": np.ones((3, 1)),
        "params/kernel/b": np.ones((1, 4)),
    }
    module = eg.LoRA(nn.Dense(4, use_bias=False), "kernel", rank=1)
    state = eg.weights.load({k: np.float32(v) for k, v in source.items()}, module, X[:, 0, 0])
    wanted = 2 * X[:, 0, 0].sum(1, keepdims=True) * np.ones(4)
    np.testing.assert_allclose(eg.Trainer(state, seed=9).predict(X[:, 0, 0]), wanted, rtol=1e-5)


def test_a_new_head_keeps_its_initial_values():
    """They are those of a Trainer with the same seed; the rest is that of the file."""
    source = {"body.weight": np.ones((4, 3), np.float32), "body.bias": np.ones(4, np.float32)}
    module = nn.Sequential([nn.Dense(4), nn.Dense(2)])
    names = {"body.weight": "params/layers_0/kernel", "body.bias": "params/layers_0/bias"}
    x = X[:, 0, 0]
    variables = eg.weights.load(
        source, module, x, names=names, transpose={"*/layers_0/kernel": (1, 0)}, keep="params/layers_1/*"
    )
    np.testing.assert_array_equal(variables["params"]["layers_0"]["kernel"], 1)
    own = module.init(jax.random.key(42), x)["params"]["layers_1"]["kernel"]
    np.testing.assert_array_equal(variables["params"]["layers_1"]["kernel"], own)


def test_a_state_is_loaded_into_and_needs_no_inputs():
    trainer = eg.Trainer(nn.Dense(2), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    trainer.fit(X[:, 0, 0], np.zeros((5, 2), np.float32), verbose=0)
    names = {"layers.0.weight": "params/kernel", "layers.0.bias": "params/bias"}
    trainer.state = eg.weights.load(SMALL, trainer.state, names=names, transpose={"*/kernel": (1, 0)})
    wanted = X[:, 0, 0] @ SMALL["layers.0.weight"].T + 1
    np.testing.assert_allclose(trainer.predict(X[:, 0, 0]), wanted, rtol=1e-5)
    assert trainer.state.optimizer.state[0].count == 1
    with pytest.raises(TypeError, match="Dense makes its parameters from a batch of inputs"):
        eg.weights.load(SMALL, nn.Dense(2))
    with pytest.raises(TypeError, match=r"not a Trainer: `trainer\.state"):
        eg.weights.load(SMALL, trainer)


def shards(folder, index_name="model.safetensors.index.json"):
    """Two shards of `SMALL`, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(SMALL, 1)}
    for name, file in files.items():
        save_file({name: SMALL[name]}, folder / file)
    (folder / index_name).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return files


def assert_loads(source, **kwargs):
    loaded = eg.weights.load(source, TREE, **GOOD, **kwargs)
    np.testing.assert_array_equal(loaded["layers_0"]["kernel"], SMALL["layers.0.weight"].T)


def test_models_in_shards_are_found_by_their_index_or_directory(tmp_path):
    shards(tmp_path / "a")
    assert_loads(tmp_path / "a")
    assert_loads(tmp_path / "a" / "model.safetensors.index.json")
    shards(tmp_path / "b", "other.safetensors.index.json")
    assert_loads(tmp_path / "b")
    save_file(SMALL, tmp_path / "one.safetensors")
    assert_loads(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda files: files.update({"extra": "model-00003-of-00002.safetensors"}),
            "00003-of-00002.safetensors is missing",
        ),
        (lambda files: files.update({"extra": "model-00001-of-00002.safetensors"}), "does not have 'extra'"),
        (lambda files: files.pop("layers.0.bias"), None),
        (
            lambda files: files.update({"layers.0.bias": "model-00001-of-00002.safetensors"}),
            "does not have 'layers.0.bias'",
        ),
        (lambda files: files.update({"extra": "../x.safetensors"}), "outside of its directory: '../x.safetensors'"),
        (lambda files: files.clear(), "has no `weight_map`"),
    ],
)
def test_an_index_that_does_not_match_its_shards(tmp_path, spoil, message):
    files = shards(tmp_path)
    spoil(files)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(CheckpointError, match=re.escape(message) if message else "nothing in the source leads"):
        eg.weights.load(tmp_path, TREE, **GOOD)


def test_directories_without_one_model(tmp_path):
    with pytest.raises(CheckpointError, match="has no safetensors file"):
        eg.weights.load(tmp_path, TREE)
    for name in "ab":
        save_file(SMALL, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"several models, 'a\.safetensors' and 'b\.safetensors'"):
        eg.weights.load(tmp_path, TREE)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as the index"):
        eg.weights.load(tmp_path, TREE)


COMMIT = "a" * 40


@pytest.fixture
def hub(tmp_path):
    """A cache of the Hub with one model in shards, as huggingface-hub lays it out."""
    model = tmp_path / "models--org--name"
    shards(model / "snapshots" / COMMIT)
    save_file(SMALL, model / "snapshots" / COMMIT / "whole.safetensors")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return {"cache_dir": tmp_path, "local_files_only": True}


def test_models_of_the_hub_come_from_its_cache(hub):
    assert_loads("hf://org/name", **hub)
    assert_loads("hf://org/name@main", **hub)
    assert_loads("hf://org/name/whole.safetensors", **hub)
    assert_loads(f"hf://org/name@{COMMIT}/model.safetensors.index.json", **hub)
    for address, message in (
        ("hf://org/other", "hf://org/other cannot be read"),
        ("hf://org/name/no.safetensors", "no such file; there are 'model-00001-of-00002.safetensors'"),
        ("hf://name", r"written hf://organisation/name"),
    ):
        with pytest.raises(CheckpointError, match=message):
            eg.weights.load(address, TREE, **GOOD, **hub)


def test_without_huggingface_hub_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "elegy\[hub\]"'):
        eg.weights.load("hf://org/name", TREE)


def test_what_cannot_be_saved_is_listed(tmp_path):
    file = tmp_path / "file.safetensors"
    tree = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}
    with pytest.raises(CheckpointError, match=r"b, float32\[2\]: no pattern of `names` leads to it"):
        eg.weights.save(file, tree, names={"x": "a"})
    with pytest.raises(CheckpointError, match=r"b, float32\[2\]: `transpose` has 2 axes"):
        eg.weights.save(file, tree, transpose={"*": (1, 0)})
    with pytest.raises(TypeError, match="cannot be inverted"):
        eg.weights.save(file, tree, names=lambda name: name)
    with pytest.raises(CheckpointError, match="no weights to save yet"):
        eg.weights.save(file, eg.Trainer(nn.Dense(1)))
    assert not file.exists()


def test_the_adapters_alone_are_saved_and_loaded(tmp_path):
    def trainer(seed):
        lora = eg.LoRA(nn.Dense(2), "kernel", rank=1)
        return eg.Trainer(lora, eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), seed=seed)

    x, y = X[:, 0, 0], np.ones((5, 2), np.float32)
    tuned = trainer(1)
    tuned.fit(x, y, epochs=2, verbose=0)
    eg.weights.save(tmp_path / "adapters.safetensors", tuned, keep="base/*", metadata={"format": "pt"})
    assert {k: v.shape for k, v in load_file(tmp_path / "adapters.safetensors").items()} == {
        "params/kernel/a": (3, 1),
        "params/kernel/b": (1, 2),
    }
    again = trainer(1)
    again.load_weights(tmp_path / "adapters.safetensors")
    np.testing.assert_array_equal(again.predict(x), tuned.predict(x))
    averaged = eg.Trainer(nn.Dense(2), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), averaging=eg.SWA())
    averaged.fit(x, y, batch_size=1, verbose=0)
    eg.weights.save(tmp_path / "mean.safetensors", averaged, weights="averaged")
    found = load_file(tmp_path / "mean.safetensors")
    np.testing.assert_allclose(
        x @ found["params/kernel"] + found["params/bias"], averaged.predict(x, weights="averaged"), rtol=1e-5, atol=1e-6
    )
