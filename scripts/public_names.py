"""The public names of Elegy, read from its source by Griffe: nothing is imported, so no module library is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class PublicName:
    """A public name, such as `elegy.losses.Huber`, and what it refers to."""

    name: str
    target: griffe.Object

    @property
    def is_module(self) -> bool:
        """Whether it is a module whose names are public too, such as `elegy.losses`."""
        return self.target.is_module

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.target.docstring.value.partition("\n")[0] if self.target.docstring else ""

    @property
    def last(self) -> str:
        """The name without its module."""
        return self.name.rpartition(".")[2]


@cache
def public_names() -> dict[str, PublicName]:
    """Every public name: those of `elegy`, and those of its public modules."""
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    package = loader.load("elegy")
    loader.resolve_aliases(external=False)
    found = {}
    for name in map(str, package.exports or ()):
        found[f"elegy.{name}"] = PublicName(f"elegy.{name}", _target(package[name]))
        if found[f"elegy.{name}"].is_module:
            module = package[name]
            for inner in _names_of(module):
                # A function may have the name of the file that it is in, which Griffe takes for the module.
                member = module[inner][inner] if _target(module[inner]).is_module else module[inner]
                found[f"elegy.{name}.{inner}"] = PublicName(f"elegy.{name}.{inner}", _target(member))
    return found


def _target(member: griffe.Object | griffe.Alias) -> griffe.Object:
    return member.final_target if isinstance(member, griffe.Alias) else member


def _names_of(module: griffe.Object | griffe.Alias) -> list[str]:
    if module.exports is not None:
        return [str(name) for name in module.exports]
    return [name for name, member in module.members.items() if not member.is_alias and _is_defined(name, member)]


def _is_defined(name: str, member: griffe.Object | griffe.Alias) -> bool:
    return not name.startswith("_") and (member.is_class or member.is_function)


def inherited(target: griffe.Object) -> list[str]:
    """The documented members that a class inherits from bases that are not public: no other entry shows them."""
    if not target.is_class:
        return []
    public = {name.target.path for name in public_names().values()}
    shown = {name for base in target.mro() if base.path in public for name in base.all_members}
    members = {name: _target(member) for name, member in target.inherited_members.items() if name not in shown}
    return [name for name, member in members.items() if member.docstring and not name.startswith("_")]
