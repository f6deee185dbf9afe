"""Pytree: frozen, named, and rebuilt by JAX without running any `__init__`."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import subprocess
import sys
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy as eg
from elegy.errors import FrozenError


class Point(eg.Pytree):
    x: Any
    y: Any = 0.0
    name: str = eg.static_field(default="p")


class Pair(eg.Pytree):
    left: Point
    right: Point
    extras: dict = eg.field(default_factory=dict)


class Walker(eg.Pytree):
    at: Point
    steps: Any = 0

    def walk(self, by, *, twice=False):
        self.at.x = self.at.x + by
        self.steps += 1 + twice
        return self.at.x

    @eg.toplevel_mutable
    def count(self, by=1):
        """Counts."""
        self.steps += by
        return "counted"

    @eg.toplevel_mutable
    def meddle(self):
        self.at.x = 100.0


class Handwritten(eg.Pytree):
    a: Any
    doubled: Any
    tag: str = eg.static_field(default="t")
    listed: list = eg.field(default_factory=list)
    runs = 0

    def __init__(self, a):
        type(self).runs += 1
        self.a = a
        self.doubled = a
        self.doubled = 2 * a


class Heir(Handwritten):
    more: Any = 7.0


def set_name(point, value):
    point.name = value


def leaves_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# frozen


@pytest.mark.parametrize(
    "assign",
    [
        lambda p: setattr(p, "x", 1),
        lambda p: setattr(p, "unknown", 1),
        lambda p: delattr(p, "x"),
        lambda p: setattr(jax.tree.map(lambda v: v, p), "x", 1),
        lambda p: setattr(p.replace(x=2), "x", 1),
        lambda p: setattr(copy.copy(p), "x", 1),
        lambda p: setattr(pickle.loads(pickle.dumps(p)), "x", 1),
    ],
    ids=["field", "unknown", "delete", "unflattened", "replaced", "copied", "unpickled"],
)
@pytest.mark.parametrize("kind", [RuntimeError, AttributeError, FrozenError])
def test_assignment_after_construction_is_an_error_of_both_kinds_that_names_replace(assign, kind):
    point = Point(1.0, 2.0)
    with pytest.raises(kind, match=r"\.replace"):
        assign(point)
    assert (point.x, point.y) == (1.0, 2.0)


def test_the_error_names_the_class_and_the_field():
    with pytest.raises(FrozenError, match=r"Point\.x.*replace\(x="):
        Point(1.0).x = 2.0


def test_equality_is_identity_and_instances_are_hashable():
    a, b = Point(1.0), Point(1.0)
    assert a != b
    assert a == a
    assert len({a, b}) == 2


# fields and key paths


def test_key_paths_are_names():
    pair = Pair(Point(1, 2), Point(3, 4), {"k": [5]})
    paths = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(pair)}
    assert paths == {".left.x": 1, ".left.y": 2, ".right.x": 3, ".right.y": 4, ".extras['k'][0]": 5}


def test_paths_and_leaves_come_in_the_same_order():
    pair = Pair(Point(1, 2), Point(3, 4), {"b": 5, "a": 6})
    with_path = [v for _, v in jax.tree_util.tree_leaves_with_path(pair)]
    assert with_path == jax.tree.leaves(pair)


def test_static_fields_belong_to_the_structure():
    one, other = Point(1.0, name="a"), Point(1.0, name="b")
    assert jax.tree.leaves(one) == [1.0, 0.0]
    assert jax.tree.structure(one) != jax.tree.structure(other)
    assert jax.tree.map(lambda v: v, one).name == "a"


def test_a_static_field_decides_about_compiling_again():
    traces = []

    @jax.jit
    def f(point):
        traces.append(point.name)
        return point.x

    f(Point(1.0, name="a")), f(Point(2.0, name="a")), f(Point(2.0, name="b"))
    assert traces == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(3, np.float32), r"Point\.name holds an array \(float32\[3\]\).*elegy\.field"),
        (jnp.zeros((2, 1)), r"Point\.name holds an array \(float32\[2,1\]\)"),
        ((1, {"w": np.zeros(2)}), r"Point\.name\[1\]\['w'\] holds an array"),
        ([1, 2], r"Point\.name holds a list, which cannot be hashed.*elegy\.Static"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda value: Point(1.0, name=value),
        lambda value: Point(1.0).replace(name=value),
        lambda value: Point(1.0).mutable(set_name)(value),
        lambda value: eg.toplevel_mutable(set_name)(Point(1.0), value),
    ],
    ids=["init", "replace", "mutable", "toplevel"],
)
def test_static_fields_hold_neither_arrays_nor_unhashable_values(value, message, make):
    with pytest.raises(TypeError, match=message):
        make(value)


def test_a_static_field_that_holds_a_tracer_is_named():
    with pytest.raises(TypeError, match=r"Point\.name holds an array"):
        jax.jit(lambda v: Point(1.0, name=v).x)(1.0)


def test_static_wraps_what_is_unhashable_or_equal_by_value():
    unhashable = {"k": [1]}
    wrapped = eg.Static(unhashable)
    point = Point(1.0, name=wrapped)
    assert jax.tree.structure(point) == jax.tree.structure(point.replace(x=2.0))
    assert jax.tree.structure(point) != jax.tree.structure(Point(1.0, name=eg.Static({"k": [1]})))
    assert point.name.value is unhashable


def test_field_keeps_the_options_of_dataclasses():
    class Options(eg.Pytree):
        a: int = eg.field(default=1, metadata={"unit": "m"})
        b: int = eg.field(default=2, kw_only=True, repr=False)

    assert repr(Options(3, b=4)) == "Options(a=3)"
    assert dataclasses.fields(Options)[0].metadata["unit"] == "m"
    with pytest.raises(TypeError, match="positional"):
        Options(1, 2)


def test_defaults_are_not_shared():
    a, b = Pair(Point(1), Point(2)), Pair(Point(1), Point(2))
    assert a.extras is not b.extras


def test_a_class_without_fields_is_an_empty_tree():
    class Empty(eg.Pytree):
        pass

    assert jax.tree.leaves(Empty()) == []
    assert type(jax.tree.map(lambda v: v, Empty())) is Empty


def test_repr_shows_arrays_by_their_shape():
    assert repr(Point(jnp.zeros((2, 3)), [np.zeros(4, np.int8)])) == "Point(x=float32[2,3], y=[int8[4]], name='p')"


# replace


def test_replace_changes_only_what_is_named():
    pair = Pair(Point(1), Point(2))
    other = pair.replace(left=Point(9))
    assert other.left.x == 9
    assert pair.left.x == 1
    assert other.right is pair.right
    assert type(other) is Pair


def test_replace_lists_the_fields_it_knows():
    with pytest.raises(TypeError, match=r"Point has no field 'z'. Its fields are: x, y, name"):
        Point(1).replace(z=1)


def test_dataclasses_replace_works():
    assert dataclasses.replace(Point(1.0), x=3.0).x == 3.0


# mutable


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.mutable("walk")(2.0, twice=True),
        lambda w: w.mutable(Walker.walk)(2.0, twice=True),
        lambda w: eg.mutable(w.walk)(w, 2.0, twice=True),
        lambda w: eg.mutable(Walker.walk)(w, 2.0, twice=True),
        lambda w: jax.jit(eg.mutable(Walker.walk), static_argnames="twice")(w, 2.0, twice=True),
    ],
    ids=["name", "function", "bound", "unbound", "jit"],
)
def test_mutable_returns_output_and_new_tree_and_leaves_the_original(call):
    walker = Walker(Point(1.0), 0)
    at = walker.at
    output, moved = call(walker)
    assert (output, moved.at.x, moved.steps) == (3.0, 3.0, 2)
    assert (walker.at.x, walker.steps) == (1.0, 0)
    assert walker.at is at
    with pytest.raises(FrozenError):
        moved.steps = 0
    with pytest.raises(FrozenError):
        moved.at.x = 0.0
    with pytest.raises(FrozenError):
        walker.at.x = 0.0


def test_mutable_calls_the_instance_by_default():
    class Adder(eg.Pytree):
        total: Any = 0.0

        def __call__(self, by):
            self.total += by
            return by

    output, adder = Adder().mutable()(2.5)
    assert (output, adder.total) == (2.5, 2.5)


def test_mutable_never_changes_containers_of_the_original():
    class Bag(eg.Pytree):
        items: dict
        points: list

        def fill(self):
            self.items["b"] = 2
            self.points[0].x = 5
            self.points.append(Point(9))

    bag = Bag({"a": 1}, [Point(1)])
    _, filled = bag.mutable("fill")()
    assert bag.items == {"a": 1}
    assert [p.x for p in bag.points] == [1]
    assert filled.items == {"a": 1, "b": 2}
    assert [p.x for p in filled.points] == [5, 9]


def test_mutable_leaves_the_original_frozen_when_the_method_raises():
    walker = Walker(Point(1.0))
    seen = []

    def fail(self):
        self.at.x = 5.0
        seen.append(self)
        raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        walker.mutable(fail)()
    assert walker.at.x == 1.0
    for tree in (walker, walker.at, seen[0], seen[0].at):
        with pytest.raises(FrozenError):
            tree.x = 1.0


def test_a_tree_that_mutable_put_in_place_is_frozen_afterwards():
    def adopt(self):
        self.at = Point(4.0)
        self.at = self.at.replace(x=6.0)

    _, walker = Walker(Point(1.0)).mutable(adopt)()
    assert walker.at.x == 6.0
    with pytest.raises(FrozenError):
        walker.at.x = 1.0


def test_a_copy_made_inside_of_mutable_is_frozen_afterwards():
    def duplicate(self):
        self.at = copy.copy(self.at)

    _, walker = Walker(Point(1.0)).mutable(duplicate)()
    with pytest.raises(FrozenError):
        walker.at.x = 1.0


def test_mutable_refuses_fields_that_are_not_declared():
    def invent(self):
        self.invented = 1

    with pytest.raises(FrozenError, match="no field 'invented'"):
        Walker(Point(1.0)).mutable(invent)()


def test_mutable_needs_a_pytree():
    with pytest.raises(TypeError, match="must be a Pytree, not a int"):
        eg.mutable(Walker.walk)(3, 1.0)


def test_mutable_inside_of_grad_and_scan():
    def walk_for(walker, xs):
        def body(walker, x):
            out, walker = walker.mutable("walk")(x)
            return walker, out

        return jax.lax.scan(body, walker, xs)

    walker = Walker(Point(jnp.float32(1.0)), jnp.int32(0))
    end, outs = walk_for(walker, jnp.arange(4.0))
    np.testing.assert_array_equal(outs, [1.0, 2.0, 4.0, 7.0])
    assert int(end.steps) == 4
    grad = jax.grad(lambda at: walk_for(walker.replace(at=at), jnp.ones(3))[0].at.x ** 2)(walker.at)
    assert type(grad) is Point
    assert float(grad.x) == 2 * 4.0


def test_toplevel_mutable_copies_self_and_keeps_children_frozen():
    walker = Walker(Point(1.0), 0)
    output, counted = walker.count(by=3)
    assert (output, counted.steps, walker.steps) == ("counted", 3, 0)
    assert counted.at is walker.at
    assert Walker.count.__doc__ == "Counts."
    with pytest.raises(FrozenError, match=r"Point\.x"):
        walker.meddle()
    with pytest.raises(FrozenError):
        counted.steps = 1


class Collected(eg.Pytree):
    count: Any
    items: list

    def add(self):
        self.count += 1
        self.items += [1]
        self.items[0]["n"] += 1

    add_at_top = eg.toplevel_mutable(add)


@pytest.mark.parametrize("call", [lambda tree: tree.mutable("add")(), Collected.add_at_top])
def test_operators_that_work_in_place_leave_the_original(call):
    tree = Collected(np.zeros(2), [{"n": np.zeros(1)}])
    _, new = call(tree)
    assert (new.count.tolist(), new.items[0]["n"].tolist(), len(new.items)) == ([1, 1], [1], 2)
    assert (tree.count.tolist(), tree.items[0]["n"].tolist(), len(tree.items)) == ([0, 0], [0], 1)


def test_toplevel_mutable_inside_of_jit():
    counted = jax.jit(lambda walker: walker.count()[1])(Walker(Point(1.0), 5))
    assert int(counted.steps) == 6


# inheritance and hand-written __init__


def test_fields_are_inherited_in_order():
    class Base(eg.Pytree):
        a: Any
        s: str = eg.static_field(default="s", kw_only=True)

    class Derived(Base):
        b: Any

    derived = Derived(1, 2, s="x")
    assert jax.tree.leaves(derived) == [1, 2]
    assert derived.s == "x"
    assert type(jax.tree.map(lambda v: v, derived)) is Derived


def test_a_subclass_may_make_a_field_static():
    class Fixed(Point):
        y: Any = eg.static_field(default=3)

    assert jax.tree.leaves(Fixed(1)) == [1]


def test_methods_and_super_work():
    class Named(Walker):
        def walk(self, by):
            return super().walk(by) + 10

    output, walker = Named(Point(1.0)).mutable("walk")(1.0)
    assert (output, walker.at.x) == (12.0, 2.0)


def test_abstract_methods_hold():
    import abc

    class Shape(eg.Pytree):
        @abc.abstractmethod
        def area(self): ...

    class Square(Shape):
        side: float = 2.0

        def area(self):
            return self.side**2

    assert Square().area() == 4.0
    with pytest.raises(TypeError, match="abstract"):
        Shape()


@pytest.mark.parametrize("cls", [Handwritten, Heir])
def test_a_handwritten_init_runs_once_and_never_when_jax_rebuilds(cls):
    before = cls.runs
    tree = cls(3.0)
    assert cls.runs == before + 1
    assert (tree.a, tree.doubled, tree.tag, tree.listed) == (3.0, 6.0, "t", [])
    mapped = jax.tree.map(lambda v: v + 1, tree)
    jax.jit(lambda t: t)(tree)
    tree.replace(a=1.0)
    copy.deepcopy(tree)
    pickle.loads(pickle.dumps(tree))
    assert (mapped.a, mapped.doubled) == (4.0, 7.0)
    assert cls.runs == before + 1
    with pytest.raises(FrozenError):
        tree.a = 1.0


def test_an_inherited_handwritten_init_fills_new_fields_from_defaults():
    assert jax.tree.leaves(Heir(1.0)) == [1.0, 2.0, 7.0]


def test_an_init_that_forgets_a_field_raises_its_name():
    class Forgetful(eg.Pytree):
        a: Any
        b: Any

        def __init__(self):
            self.a = 1

    with pytest.raises(TypeError, match="left the field 'b' without a value"):
        Forgetful()


def test_an_init_cannot_assign_what_is_not_declared():
    class Undeclared(eg.Pytree):
        a: Any

        def __init__(self):
            self.b = 1

    with pytest.raises(FrozenError, match="no field 'b'"):
        Undeclared()


def test_post_init_may_assign():
    class Norm(eg.Pytree):
        v: Any
        length: Any = eg.field(init=False)

        def __post_init__(self):
            self.length = jnp.linalg.norm(self.v)

    assert float(Norm(jnp.array([3.0, 4.0])).length) == 5.0


# round trips

TREE = Pair(Point(jnp.arange(3.0), np.int32(2), name="l"), Point(1.5, None), {"k": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    "trip",
    [
        lambda t: jax.tree.unflatten(jax.tree.structure(t), jax.tree.leaves(t)),
        lambda t: jax.jit(lambda v: v)(t),
        lambda t: jax.tree.map(lambda v: v[0], jax.vmap(lambda v: v)(jax.tree.map(lambda v: jnp.stack([v, v]), t))),
        lambda t: jax.lax.scan(lambda c, _: (c, None), jax.tree.map(jnp.asarray, t), None, length=2)[0],
        copy.copy,
        copy.deepcopy,
        lambda t: pickle.loads(pickle.dumps(t)),
        lambda t: cloudpickle.loads(cloudpickle.dumps(t)),
        lambda t: jax.device_put(t, jax.devices()[0]),
    ],
    ids=["flatten", "jit", "vmap", "scan", "copy", "deepcopy", "pickle", "cloudpickle", "device_put"],
)
def test_round_trips_keep_class_structure_and_values(trip):
    back = trip(TREE)
    leaves_equal(back, TREE)
    assert back.left.name == "l"
    with pytest.raises(FrozenError):
        back.left = None


def test_deepcopy_shares_no_container():
    tree = Pair(Point(1), Point(2), {"k": [1]})
    deep = copy.deepcopy(tree)
    assert deep.extras is not tree.extras
    assert deep.left is not tree.left


def test_grad_has_the_form_of_the_tree():
    def loss(point):
        return jnp.sum(point.x**2) + 3.0 * point.y

    grad = jax.grad(loss)(Point(jnp.arange(3.0), 1.0))
    assert type(grad) is Point
    np.testing.assert_allclose(grad.x, 2 * np.arange(3.0))
    assert float(grad.y) == 3.0


def test_tree_with_objects_that_are_not_arrays_passes_through_jax_tree():
    tree = jax.tree.map(lambda v: object(), Point(1, 2))
    assert jax.tree.structure(tree) == jax.tree.structure(Point(1, 2))
    assert jax.tree.leaves(jax.tree.map(lambda v: None, tree), is_leaf=lambda v: v is None) == [None, None]


LOCAL_CLASS = """
import cloudpickle, elegy as eg, jax

def make():
    class Local(eg.Pytree):
        a: float
        s: str = eg.static_field(default="s")
        def twice(self):
            self.a = 2 * self.a
    class Own(eg.Pytree):
        a: float
        b: list = eg.field(default_factory=list)
        def __init__(self, a=5.0):
            if a:
                self.a = a
    return Local(3.0, s="kept"), Own()

import sys
with open(sys.argv[1], "wb") as file:
    cloudpickle.dump(make(), file)
"""

READ_LOCAL = """
import cloudpickle, jax, sys
import elegy as eg
with open(sys.argv[1], "rb") as file:
    tree, own = cloudpickle.load(file)
assert jax.tree.leaves((tree, own)) == [3.0, 5.0], jax.tree.leaves((tree, own))
assert tree.s == "kept"
again = jax.tree.map(lambda v: v + 1, tree)
assert (again.a, again.s) == (4.0, "kept")
assert tree.mutable("twice")()[1].a == 6.0
assert type(tree)(1.0).s == "s"
assert (type(own)().a, type(own)().b) == (5.0, [])
for wrong in (lambda: setattr(tree, "a", 1), lambda: type(own)(a=None)):
    try:
        wrong()
    except (AttributeError, TypeError) as error:
        print(error)
"""


def test_an_instance_of_a_local_class_survives_cloudpickle_into_another_process(tmp_path):
    target = tmp_path / "tree.pkl"
    wrote = subprocess.run([sys.executable, "-c", LOCAL_CLASS, str(target)], capture_output=True, text=True)
    assert wrote.returncode == 0, wrote.stderr
    read = subprocess.run([sys.executable, "-c", READ_LOCAL, str(target)], capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    assert re.search("cannot assign Local.a: .*\n.*left the field 'a' without a value", read.stdout)
