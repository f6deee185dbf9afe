import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import elegy as eg
from elegy.adapters import load_treex, register_adapter, resolve

KEY = jax.random.key(0)


class WithState(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")

    def __call__(self, x, state):
        return self.norm(x, state)


class Elegant(eg.ElegyModule):
    def apply(self, key, inputs, training):
        return inputs, self


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Dense(2), "LinenModule"),
        (nnx.Linear(3, 2, rngs=nnx.Rngs(0)), "NNXModule"),
        (eqx.nn.Linear(3, 2, key=KEY), "EquinoxModule"),
        (eqx.nn.make_with_state(WithState)(), "EquinoxModule"),
        (hk.transform(lambda x: x), "HaikuModule"),
        (hk.transform_with_state(lambda x: x), "HaikuModule"),
        ((lambda key, x: {}, lambda params, x: x), "FunctionalModule"),
        (Elegant(), "Elegant"),
    ],
)
def test_modules_are_recognised(module, name):
    assert type(resolve(module)).__name__ == name
    assert type(eg.Trainer(module).state).__name__ == name


@pytest.mark.parametrize(
    "module",
    [None, 3, "resnet", lambda x: x, (lambda x: x,), optax.adam(1e-3), [nn.Dense(1)], (nn.Dense, nn.Dense)],
)
def test_an_unknown_object_is_told_what_is_accepted(module):
    with pytest.raises(TypeError) as caught:
        resolve(module)
    for word in ("ElegyModule", "flax.linen", "flax.nnx", "equinox", "haiku", "(init, apply)", "register_adapter"):
        assert word in str(caught.value)


@pytest.mark.parametrize("cls", [nn.Dense, nnx.Linear, eqx.nn.Linear, Elegant])
def test_a_class_in_place_of_an_instance_is_named(cls):
    with pytest.raises(TypeError, match=rf"the module {cls.__name__} is a class: pass an instance"):
        resolve(cls)


def test_an_elegy_module_takes_no_variables():
    with pytest.raises(ValueError, match=r"module\.replace\(params=\.\.\.\)"):
        resolve(Elegant(), {"params": {}})


def test_a_users_own_adapter():
    class Scale:
        factor = 3.0

    class ScaleModule(eg.ElegyModule):
        def __init__(self, factor):
            self.params = {"factor": jnp.asarray(factor, jnp.float32)}

        def apply(self, key, inputs, training):
            return self.params["factor"] * inputs, self

    register_adapter(lambda module: isinstance(module, Scale), lambda module, variables: ScaleModule(module.factor))
    assert eg.Trainer(Scale()).predict(jnp.ones((2, 1))).tolist() == [[3.0], [3.0]]

    class Broken: ...

    register_adapter(lambda module: isinstance(module, Broken), lambda module, variables: module)
    with pytest.raises(TypeError, match="returned a Broken, not an ElegyModule"):
        resolve(Broken())
    with pytest.raises(TypeError, match="recognise must be a function"):
        register_adapter(None, None)


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("eg.Trainer((lambda key, x: {'w': x[0] * 0.}, lambda p, x: x * p['w'])).predict(np.ones((4, 2)))", ()),
        ("import equinox as eqx, jax; eg.Trainer(eqx.nn.Identity())", ("equinox",)),
    ],
    ids=["functions", "equinox"],
)
def test_libraries_that_are_not_in_use_are_not_imported(code, allowed):
    script = f"import sys, numpy as np, elegy as eg; {code}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not set(out) & ({"flax", "haiku", "equinox", "treex", "rich"} - set(allowed))
    assert not {"elegy.adapters.linen", "elegy.adapters.nnx", "elegy.adapters.haiku"} & set(out)


def test_the_package_names_what_it_has():
    from elegy import adapters

    assert all(hasattr(adapters, name) for name in adapters.__all__)
    with pytest.raises(AttributeError, match="no attribute 'TorchModule'"):
        adapters.TorchModule  # noqa: B018


def test_a_missing_treex_is_explained(monkeypatch):
    monkeypatch.delitem(sys.modules, "treex", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps treex==0\.6\.9 treeo==0\.0\.9"):
        load_treex()
