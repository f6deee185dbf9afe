"""The frame of a page of HTML that loads nothing: its style, its script, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

STYLE = """
.elegy{--bg:#fff;--fg:#1c1e21;--soft:#667085;--line:#e4e7ec;--card:#f8f9fb;--c0:#3f51b5;--c1:#d9480f;--c2:#2b8a3e;
--c3:#9c36b5;--c4:#0b7285;--c5:#c2255c;--c6:#866118;--c7:#495057;color:var(--fg);background:var(--bg);
font:15px/1.5 system-ui,sans-serif}
@media (prefers-color-scheme:dark){.elegy{--bg:#15171c;--fg:#e6e8ec;--soft:#98a2b3;--line:#30343c;--card:#1d2027;
--c0:#91a7ff;--c1:#ff922b;--c2:#69db7c;--c3:#da77f2;--c4:#3bc9db;--c5:#f783ac;--c6:#e8c34a;--c7:#ced4da}}
body.elegy{margin:0 auto;padding:1.5rem;max-width:1200px}
.elegy h1{font-size:1.5rem;margin:0}.elegy h2{font-size:1.1rem;margin:2rem 0 .6rem}.elegy .soft{color:var(--soft)}
.elegy .charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:1rem}
.elegy figure{margin:0;padding:.8rem;background:var(--card);border:1px solid var(--line);border-radius:8px;
position:relative}
.elegy figcaption{font-weight:600}.elegy svg{width:100%;height:auto;display:block}
.elegy svg text{fill:var(--soft);font:11px system-ui,sans-serif}.elegy .grid{stroke:var(--line)}
.elegy .cursor{stroke:var(--soft);stroke-dasharray:3;visibility:hidden}
.elegy .line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}.elegy .dot{fill:currentColor}
.elegy .line.faint{opacity:.35;stroke-width:1}
.elegy .legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:13px}
.elegy .key::before{content:"";display:inline-block;width:1em;height:3px;margin-right:.4em;vertical-align:middle;
background:currentColor}.elegy .key.faint::before{opacity:.35}
.elegy figure output{font-size:12px;color:var(--soft);min-height:1.5em;display:block}
.elegy table{border-collapse:collapse;font-size:14px}.elegy .wide{overflow-x:auto}
.elegy td,.elegy th{padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top}.elegy td.n,.elegy th.n{text-align:right;font-variant-numeric:tabular-nums}
.elegy pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem;overflow-x:auto;
font-size:13px}.elegy .bad{color:var(--c1)}.elegy summary{cursor:pointer;font-weight:600;margin:1rem 0 .4rem}
.elegy .bar{display:flex;height:18px;border-radius:4px;overflow:hidden;margin:.5rem 0}
.elegy .bar span{background:currentColor}
""" + "".join(f".elegy .c{k}{{color:var(--c{k})}}" for k in range(8))

_SCRIPT = """
for (const figure of document.querySelectorAll("figure[data-lines]")) {
  const lines = JSON.parse(figure.dataset.lines), svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor"), out = figure.querySelector("output");
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const near = lines.filter(line => line.points.length).map(line => [line.name, line.points.reduce(
      (best, point) => Math.abs(point[2] - x) < Math.abs(best[2] - x) ? point : best)]);
    if (!near.length) return;
    const at = near.reduce((best, one) => Math.abs(one[1][2] - x) < Math.abs(best[1][2] - x) ? one : best)[1];
    cursor.setAttribute("x1", at[2]); cursor.setAttribute("x2", at[2]); cursor.style.visibility = "visible";
    out.textContent = at[0] + ": " + near.filter(one => one[1][0] === at[0])
      .map(one => one[0] + " " + Number(one[1][1].toPrecision(5))).join(", ");
  });
  svg.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; out.textContent = ""; });
}
"""


def page(title: str, *parts: str) -> str:
    """Makes a whole page of parts that are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f'<body class="elegy">\n{"".join(parts)}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n'
    )


def embedded(*parts: str) -> str:
    """Puts parts that are HTML into the output of a notebook's cell, in its own style."""
    return f'<div class="elegy"><style>{STYLE}</style>{"".join(parts)}</div>'


def grid(charts: Sequence[str]) -> str:
    """Puts charts side by side; nothing without charts."""
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def section(title: str, *parts: str) -> str:
    """Makes a section; nothing if its parts are empty."""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n" if body else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Makes a table: cells that are numbers are aligned right, None is an empty cell; nothing without rows.

    Example:
        >>> table(["name", "value"], [["<a>", 0.25]])[-75:]
        'dy><tr><td>&lt;a&gt;</td><td class="n">0.25</td></tr></tbody></table></div>'
    """
    cells = [list(row) for row in rows]
    if not cells:
        return ""
    numeric = [any(_is_number(row[k]) for row in cells) for k in range(len(columns))]
    head = "".join(_cell("th", name, right) for name, right in zip(columns, numeric, strict=True))
    body = "".join(f"<tr>{''.join(_cell('td', value, _is_number(value)) for value in row)}</tr>" for row in cells)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def details(title: str, body: str) -> str:
    """Makes a part that a click opens; nothing if its body is empty."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>\n" if body else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(value: float) -> str:
    """Writes a number with at most five digits, an integer with all of them.

    Example:
        >>> number(12345), number(0.123456)
        ('12,345', '0.12346')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _cell(tag: str, value: Any, right: bool) -> str:
    text = "" if value is None else number(value) if _is_number(value) else str(value)
    kind = ' class="n"' if right else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"
