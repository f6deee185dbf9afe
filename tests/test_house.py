"""The house rules of the design: who may import whom, how long files are, what is never used."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import elegy as eg

ROOT = Path(__file__).parent.parent / "elegy"

FLOORS = {
    "__init__": 9,
    "__main__": 9,
    "cli": 9,
    "serving": 8,
    "trainer": 8,
    "weights": 8,
    "adapters": 7,
    "runs": 7,
    "engine": 6,
    "module": 5,
    "callbacks": 4,
    "loggers": 4,
    "metrics": 4,
    "optimizer": 4,
    "optimizer_groups": 4,
    "regularizers": 4,
    "losses": 3,
    "loading": 3,
    "strategies": 2,
    "data": 2,
    "checkpoint": 2,
    "distributed": 2,
    "pytree": 1,
    "errors": 1,
    "fields": 1,
    "types": 1,
    "names": 1,
    "patterns": 1,
    "flat": 1,
    "garbage": 1,
    "html": 1,
    "integers": 1,
    "keywords": 1,
    "lazy": 1,
    "jaxprs": 1,
    "lazy_logs": 1,
    "settings": 1,
    "waiting": 1,
    "strict_json": 1,
    "suggestions": 1,
    "transfers": 1,
    "callers": 1,
    "walltime": 1,
}

FORBIDDEN = [
    ("data", "strategies"),
    ("module", "callbacks"),
    ("module", "loading"),
    ("engine", "callbacks"),
    ("callbacks", "loggers"),
]

FILES = sorted(ROOT.rglob("*.py"))

HEAVY = (
    "jsonargparse",
    "docstring_parser",
    "starlette",
    "uvicorn",
    "wandb",
    "mlflow",
    "trackio",
    "flax",
    "haiku",
    "equinox",
    "treex",
    "keras",
    "penzai",
    "numpyro",
    "distrax",
    "jax_metrics",
    "orbax",
    "tensorboardX",
    "sklearn",
    "matplotlib",
    "IPython",
    "treescope",
    "clu",
    "safetensors",
    "huggingface_hub",
    "jax2onnx",
    "onnxruntime",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def place(module: str) -> str:
    """Where a module lives: the part of its name that the table of floors knows."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_time_nodes(tree: ast.AST):
    """All nodes but those that only a type checker sees."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            continue
        yield child
        yield from run_time_nodes(child)


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that a module imports, also those that its functions import."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text())
    found = set()
    for node in run_time_nodes(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in MODULES else source)
    return frozenset(name for name in found if name == "elegy" or name.startswith("elegy."))


def test_every_place_has_a_floor():
    assert {place(module) for module in MODULES} <= FLOORS.keys()


@pytest.mark.parametrize("module", [m for m in MODULES if m != "elegy"])
def test_imports_point_down_or_beside(module):
    here = place(module)
    for imported in imports(module):
        assert imported != "elegy", f"{module} imports the face of the package"
        assert imported in MODULES, f"{module} imports {imported}, which is no module"
        there = place(imported)
        assert FLOORS[there] <= FLOORS[here], f"{module} (floor {FLOORS[here]}) imports {imported}, which is above it"
        assert (here, there) not in FORBIDDEN, f"{module} imports {imported}"


def circles(edges: dict[str, frozenset[str]]) -> list[list[str]]:
    """A circle for each edge that closes one in a depth-first walk."""
    found, done = [], set()

    def walk(node: str, trail: list[str]) -> None:
        if node in trail:
            found.append([*trail[trail.index(node) :], node])
            return
        if node in done:
            return
        for following in sorted(edges[node]):
            walk(following, [*trail, node])
        done.add(node)

    for node in sorted(edges):
        walk(node, [])
    return found


def test_no_circles_between_modules():
    """A package's `__init__` stands for its public names, so an import of the package by its own parts would be one."""
    edges = {module: imports(module) - {module} for module in MODULES if module != "elegy"}
    assert circles(edges) == []


def test_no_circles_between_places():
    edges = {
        here: frozenset(
            place(imported)
            for module in MODULES
            if place(module) == here
            for imported in imports(module)
            if place(imported) != here
        )
        for here in FLOORS
        if here != "__init__"
    }
    assert circles(edges) == []


def test_the_walk_finds_a_circle():
    edges = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"b"}), "d": frozenset()}
    assert circles(edges) == [["b", "c", "b"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_files_are_short_and_use_public_jax(path):
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= 400, f"{path.name} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        assert not any("_src" in name.split(".") for name in (*names, source)), ast.unparse(node)
        assert not (isinstance(node, ast.Attribute) and node.attr == "_src"), ast.unparse(node)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


PARTS = {"trainer", "session", "run", "listeners", "executor", "buffer", "program", "loader", "monitor"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_no_part_of_the_engine_reaches_into_another(path):
    """An underscored attribute is used only in the file that defines it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    own = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"}
    for node in nodes:
        if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            owner = ast.unparse(node.value).rpartition(".")[2]
            assert owner not in PARTS or node.attr in own, ast.unparse(node)


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_no_test_is_skipped(path):
    """A missing library fails a test; a test that needs one beyond the extra `test` carries the mark `needs`."""
    skips = {"importorskip", "skipif", "skip", "xfail"}
    names = [node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    assert not skips & set(names)


def test_importing_elegy_loads_no_optional_and_no_heavy_library():
    code = f"import sys, elegy; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    assert done.stderr == ""


RARE = (
    "elegy.metrics.bleu",
    "elegy.loggers.wandb",
    "elegy.trainer.population.population",
    "elegy.serving",
    "elegy.cli",
)


def test_a_trainer_imports_no_part_that_it_does_not_use():
    code = (
        "import sys, elegy, optax; elegy.Trainer(elegy.ElegyModule(), elegy.losses.Huber(), elegy.metrics.Accuracy(), "
        f"optax.sgd(0.1)); print([name for name in {RARE!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("package", ["metrics", "loggers", "trainer"])
def test_names_that_are_imported_when_used_are_those_that_type_checkers_see(package):
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    (seen,) = (node.body for node in tree.body if isinstance(node, ast.If))
    found = {alias.name: node.module for node in seen for alias in node.names}
    loaded = importlib.import_module(f"elegy.{package}")
    assert {name: f"elegy.{home}" for home, names in loaded._NAMES.items() for name in names} == found
    assert sorted(found) == sorted(loaded.__all__) == dir(loaded)
    assert all(getattr(loaded, name) is getattr(sys.modules[home], name) for name, home in found.items())


def test_importing_elegy_starts_no_backend():
    """The user may still choose a platform, devices or `jax.distributed` after the import."""
    code = "import elegy, jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())"
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "3", done.stderr


def test_all_public_names_exist_and_are_documented():
    for name in eg.__all__:
        assert getattr(eg, name).__doc__, name
    assert dir(eg) == sorted(eg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = eg.nothing
