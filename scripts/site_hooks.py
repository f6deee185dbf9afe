"""Hooks of MkDocs (mkdocs.yml): the pages of the reference, pages of source files, links from names to the reference.

The reference is made from the public names, so that a new name is on it without an edit here. A page that links to a
file of the repository (`../examples/gan.py`), as a reader on GitHub needs it, links on the site to a page with the text
of that file.
"""

from __future__ import annotations

import json
import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from public_names import PublicName, inherited, public_names  # MkDocs imports a hook with its folder on the path

ROOT = Path(__file__).parents[1]

_LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
_SKIPPED = r"<a\b.*?</a>|<h[1-6]\b.*?</h[1-6]>|<pre\b.*?</pre>"
_CODE = re.compile(_SKIPPED + r"|<code>([A-Za-z_][\w.]*)(?:\([^<]*\))?</code>", re.DOTALL)
_TITLES = {"trainer": "Trainer", "module": "Module and state"}


@cache
def described() -> dict[str, tuple[str, str]]:
    """For every public name but modules: the page of the reference with its entry, and the name of this entry.

    An object with several names has one entry, in the module that holds its code.
    """

    def rank(name: PublicName) -> tuple[bool, bool, str]:
        return name.name.count(".") < 2, not name.target.path.startswith(name.name.rpartition(".")[0]), name.name

    entries: dict[str, tuple[str, str]] = {}
    for name in sorted((name for name in public_names().values() if not name.is_module), key=rank):
        parts = name.name.split(".")
        own = "trainer" if name.target.path.startswith("elegy.trainer.") else "module"
        entries.setdefault(name.target.path, (parts[1] if len(parts) > 2 else own, name.name))
    return {name.name: entries[name.target.path] for name in public_names().values() if not name.is_module}


def _entry(name: PublicName) -> str:
    options = {}
    path, anchor = name.name, ""
    if name.target.path == f"{name.name}.{name.last}":  # a function in a file of its name
        path, anchor = name.target.path, f'<a id="{name.name}"></a>\n'
        options |= {"heading": name.name, "toc_label": name.last}
    if members := inherited(name.target):
        options["inherited_members"] = members
    return f"\n{anchor}\n::: {path}\n" + (f"    options: {json.dumps(options)}\n" if options else "")


def _reference() -> dict[str, str]:
    """The pages of the reference by path, as Markdown."""
    pages = {page: f"# {title}\n" for page, title in _TITLES.items()}
    rows = []
    names = sorted(public_names().values(), key=lambda name: name.last != "Trainer")  # which a reader looks for first
    for name in names:
        if name.is_module:
            page = name.last
            pages[page] = f"# `{name.name}`\n\n{name.target.docstring.value}\n"
            rows.append(f'| <a id="{name.name}"></a>[`{name.name}`]({page}.md) | {name.summary} |')
            continue
        page, entry = described()[name.name]
        anchor = "" if entry == name.name else f'<a id="{name.name}"></a>'
        if name.name.count(".") == 1:
            rows.append(f"| {anchor}[`{name.name}`]({page}.md#{entry}) | {name.summary} |")
        elif entry != name.name:
            own = name.name.split(".")[1]
            pages[own] += f"\n## `{name.name}` {{ #{name.name} }}\n\nThe same as [`{entry}`]({page}.md#{entry}).\n"
        if entry == name.name:
            pages[page] += _entry(name)
    pages["index"] = "# All names\n\nEach module has a page.\n\n| name | |\n|---|---|\n" + "\n".join(rows) + "\n"
    return {f"reference/{page}.md": text for page, text in pages.items()}


def _source_uri(path: str) -> str:
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def _source_page(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text.replace("](docs/", "](../")
    return f"# {path}\n\n````python\n{text}````\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds the reference, and a page for each file of the repository that a page links to."""
    pages = _reference()
    for page in files.documentation_pages():
        for path in _LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            pages[_source_uri(path)] = _source_page(path)
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Links to files of the repository become links to their pages."""
    if page.file.generated_by is not None:
        return markdown
    return _LINK.sub(lambda match: f"]({_source_uri(match.group(1))})", markdown)


@cache
def _anchors() -> dict[str, str]:
    """What a page may write in backticks, and the place in the reference to which it refers."""
    places = {name: f"{page}.html#{entry}" for name, (page, entry) in described().items()}
    linked = {}
    for name in public_names().values():
        place = f"{name.last}.html" if name.is_module else places[name.name]
        short = name.name.removeprefix("elegy.")
        linked |= {name.name: place, f"eg.{short}": place}
        if "." in short or name.target.is_class:
            linked[short] = place
    trainer = public_names()["elegy.Trainer"].target
    for member in [*trainer.members, *trainer.inherited_members]:
        if not member.startswith("_"):
            linked |= dict.fromkeys((f"trainer.{member}", f"Trainer.{member}"), f"trainer.html#elegy.Trainer.{member}")
    classes: dict[str, set[str]] = {}
    for name in public_names().values():
        if name.target.is_class:
            classes.setdefault(name.last, set()).add(places[name.name])
    return {last: place for last, (place, *others) in classes.items() if not others} | linked


def on_page_content(html: str, page: Any, **kwargs: Any) -> str:
    """Names in backticks become links to the reference."""
    reference = posixpath.relpath("reference", posixpath.dirname(page.file.dest_uri) or ".")

    def link(match: re.Match[str]) -> str:
        place = _anchors().get(match.group(1) or "")
        return f'<a href="{reference}/{place}">{match.group(0)}</a>' if place else match.group(0)

    return _CODE.sub(link, html)
