"""Pages about runs: one run in full, and several together."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from elegy.html.chart import Line, chart
from elegy.html.page import details, grid, number, page, section, table
from elegy.runs.listing import aligned
from elegy.runs.record import RunRecord, read

_ROWS = 200
"""The most rows of a table of values."""


def report(run: RunRecord | str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Writes a page about a run: one HTML file that loads nothing from elsewhere.

    It has the curves over steps and epochs, the evaluations, the best values and checkpoint, the throughput, the parts
    of the wall time, the parameters, warnings, the configuration and the environment.

    Args:
        run: the folder of a run, or its record.
        path: the file to write; missing directories are made.

    Raises:
        FileNotFoundError: if there is no run in the folder.

    Example:
        >>> import tempfile
        >>> values = [{"type": "epoch", "step": k, "epoch": k, "values": {"loss": 1 / k}} for k in (1, 2)]
        >>> record = RunRecord("first", None, "finished", 2, 2, tuple(values))
        >>> page = report(record, Path(tempfile.mkdtemp()) / "report.html").read_text()
        >>> "<svg" in page, "http" in page
        (True, False)
    """
    record = run if isinstance(run, RunRecord) else read(run)
    return _write(path, page(f"{record.name}: Elegy", _head(record), *_sections(record)))


def compare(runs: Iterable[RunRecord | str | os.PathLike[str]], path: str | os.PathLike[str]) -> Path:
    """Writes a page that draws several runs together, and lists their best values and what differs between them.

    Of a run that was resumed with other settings, it has all values of a setting: `0.1 -> 0.01`.

    Args:
        runs: the folders of the runs, or their records.
        path: the file to write; missing directories are made.

    Raises:
        FileNotFoundError: if there is no run in a folder.
        ValueError: if there is no run.
    """
    records = [run if isinstance(run, RunRecord) else read(run) for run in runs]
    if not records:
        raise ValueError("there is no run to compare: pass the folders of runs.")
    labels = _labels(records)
    both = list(zip(labels, records, strict=True))
    series = [record.series() for record in records]
    names = dict.fromkeys(name for one in series for name in one)
    ranked = dict.fromkeys(name for record in records for name in record.best)
    best = [[label, run.status, run.epoch, run.step, *(_best(run, name) for name in ranked)] for label, run in both]
    charts = []
    for name in names:
        drawn = enumerate(zip(labels, series, strict=True))
        lines = [Line(label, *one[name], color=k) for k, (label, one) in drawn if name in one]
        charts.append(chart(name, lines))
    return _write(
        path,
        page(
            f"{' / '.join(labels)}: Elegy",
            f"<h1>{escape(' / '.join(labels))}</h1>",
            section("Best values", table(["run", "status", "epochs", "steps", *ranked], best)),
            section("Curves", grid(charts)),
            section("What differs", table(["setting", *labels], _differences(records))),
        ),
    )


def curves(record: RunRecord) -> str:
    """Returns the charts of a run as HTML: for each name the values of training and of each evaluation."""
    groups: dict[str, list[Line]] = {}
    prefixes = _prefixes(record)
    steps = record.series("step")
    series = record.series()
    for name, (at, values) in series.items():
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default="")
        group = groups.setdefault(name.removeprefix(prefix), [])
        group.append(Line(prefix.removesuffix("_") or "train (epoch)", at, values))
        if not prefix and name in steps:
            group.append(Line("train (step)", *steps[name], faint=True))
    for name, (at, values) in steps.items():
        if name not in series:
            groups.setdefault(name, []).append(Line("train (step)", at, values))
    hidden = [name for name in groups if name.startswith("seconds_")]
    return grid([chart(name, lines) for name, lines in groups.items() if name not in hidden])


def _head(record: RunRecord) -> str:
    count = record.config.get("trainer", {}).get("parameters")
    facts = [
        record.config.get("trainer", {}).get("module"),
        f"{record.epoch} epochs, {record.step:,} steps",
        None if count is None else f"{count:,} parameters",
        None if record.started is None else f"begun {record.started:%Y-%m-%d %H:%M} UTC",
        None if record.seconds is None else f"{record.seconds:.1f} s",
    ]
    kind = "" if record.status in ("finished", "running") else ' class="bad"'
    text = " · ".join(escape(fact) for fact in facts if fact)
    return f"<h1>{escape(record.name)} <small{kind}>{escape(record.status)}</small></h1><p>{text}</p>"


def _sections(record: RunRecord) -> list[str]:
    best = [[name, value, step] for name, (value, step) in record.best.items()]
    return [
        section("Problems", *_problems(record)),
        section("Best values", table(["name", "best value", "at step"], best), _checkpoints(record)),
        section("Curves", curves(record)),
        section("Evaluations", _values(record)),
        section("Throughput and time", _throughput(record), _times(record)),
        section("Parameters", _parameters(record)),
        section("Changed when the run was resumed", table(["setting", "values"], _differences([record]))),
        details("Configuration", _json(record.config)),
        details("Environment", _json(record.environment)),
    ]


def _problems(record: RunRecord) -> list[str]:
    errors = [f'<p class="bad">{escape(fit["error"])}</p>' for fit in record.fits if "error" in fit]
    bad = [
        f"<p>{escape(name)} was not finite in {len(steps)} records, first at step {steps[0]:,}.</p>"
        for name, (at, values) in record.series("step", "epoch", "evaluation").items()
        if (steps := [s for s, v in zip(at, values, strict=True) if not math.isfinite(v)])
    ]
    noted = [
        [one["category"], one["message"], f"{os.path.basename(one['file'])}:{one['line']}", one["times"]]
        for fit in record.fits
        for one in fit.get("warnings", ())
    ]
    return [*errors, *bad, table(["warning", "message", "where", "times"], noted)]


def _checkpoints(record: RunRecord) -> str:
    parts = []
    for one in record.checkpoints:
        if one.get("best") is not None:
            best = f"{one['best']} ({one['monitor']} {number(one['best_value'])})"
            parts.append(f"<p>Best checkpoint: <b>{escape(best)}</b></p>")
        if one.get("last") is not None:
            parts.append(f"<p>Newest checkpoint: {escape(one['last'])}</p>")
    return "".join(parts)


def _prefixes(record: RunRecord) -> list[str]:
    """The beginnings of the names of evaluations, such as `val_`."""
    names = record.config.get("data", {}).get("evaluations", {})
    return sorted({"val_", *(f"{name}_" for name in names)}, key=len)


def _values(record: RunRecord) -> str:
    prefixes = tuple(_prefixes(record))
    rows = [
        (one["step"], one["epoch"] + 1, values)
        for one in record.records
        if one["type"] != "step" and (values := {n: v for n, v in one["values"].items() if n.startswith(prefixes)})
    ]
    names = list(dict.fromkeys(name for _, _, values in rows for name in values))
    left = f"<p>The last {_ROWS} of {len(rows)}.</p>" if len(rows) > _ROWS else ""
    return left + table(
        ["epoch", "step", *names],
        [[epoch, step, *(values.get(name) for name in names)] for step, epoch, values in rows[-_ROWS:]],
    )


def _throughput(record: RunRecord) -> str:
    at, rates = [], []
    before: tuple[float, float] | None = None
    for one in record.records:
        if one["type"] != "epoch" or "examples" not in one:
            continue
        now = (one["examples"], one["seconds"])
        # Seconds and examples start anew with each fit, whose first epoch contains the compilation.
        if before is not None and now[0] > before[0] and now[1] > before[1]:
            at.append(one["step"])
            rates.append((now[0] - before[0]) / (now[1] - before[1]))
        before = now
    if not rates:
        return ""
    title = "examples per second, of each epoch with its evaluation and saving"
    return grid([chart(title, [Line("epochs", at, rates)])])


def _times(record: RunRecord) -> str:
    seconds: dict[str, float] = {}
    for fit in record.fits:
        for part, value in fit.get("seconds", {}).items():
            seconds[part] = seconds.get(part, 0.0) + value
    whole = sum(seconds.values())
    if not whole:
        return "<p>The parts of the wall time were not measured: they are, of a run in a folder that has ended.</p>"
    bar = "".join(
        f'<span class="c{k}" style="width:{100 * value / whole:.2f}%" title="{escape(part, quote=True)}"></span>'
        for k, (part, value) in enumerate(seconds.items())
    )
    rows = [[part, value, f"{100 * value / whole:.1f} %"] for part, value in seconds.items()]
    return f'<div class="bar">{bar}</div>{table(["part", "seconds", "share"], [*rows, ["all", whole, ""]])}'


def _parameters(record: RunRecord) -> str:
    rows = [
        [one["path"], f"{one['dtype']}[{','.join(map(str, one['shape']))}]", math.prod(one["shape"])]
        for one in record.parameters
    ]
    return table(["path", "array", "count"], [*rows, ["all", "", sum(row[2] for row in rows)]] if rows else [])


def _differences(records: Sequence[RunRecord]) -> list[list[Any]]:
    """The settings that are not the same in all runs, or changed when a run was resumed: `0.1 -> 0.01`."""
    configs = [[dict(_flat(config)) for config in (*record.earlier, record.config)] for record in records]
    names = dict.fromkeys(name for of_run in configs for config in of_run for name in config)
    rows = [(name, [_changes([config.get(name) for config in of_run]) for of_run in configs]) for name in names]
    return [
        [name, *(values[0] if len(values) == 1 else " -> ".join(map(str, values)) for values in cells)]
        for name, cells in rows
        if any(len(values) > 1 or values != cells[0] for values in cells)
    ]


def _changes(values: Sequence[Any]) -> list[Any]:
    """The values without those that repeat the one before."""
    return [value for value, _ in itertools.groupby(values)]


def differing(records: Sequence[RunRecord]) -> str:
    """Returns a table of the settings that differ between runs, or within one that was resumed; empty without any."""
    rows = [["" if value is None else str(value) for value in row] for row in _differences(records)]
    return aligned([["setting", *_labels(records)], *rows]) if rows else ""


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value) if isinstance(value, (list, tuple)) else value


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """A name for each run: that of its folder, or its path where several have the same."""
    names = [record.name for record in records]
    if len(set(names)) == len(names):
        return names
    return [name if record.path is None else str(record.path) for name, record in zip(names, records, strict=True)]


def _best(record: RunRecord, name: str) -> float | None:
    found = record.best.get(name)
    return None if found is None else found[0]


def _json(value: Mapping[str, Any]) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2))}</pre>" if value else ""


def _write(path: str | os.PathLike[str], text: str) -> Path:
    where = Path(path)
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(text, encoding="utf-8")
    return where
