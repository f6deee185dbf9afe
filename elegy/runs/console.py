"""Copies what a program prints during a run to a file, and notes its warnings."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Console:
    """Copies `sys.stdout` and `sys.stderr` while a block runs. Of the frames of a progress bar, the last one counts.

    Until `attach` is called, the text is kept in memory. What C++ code and other processes print is not copied.

    Attributes:
        warnings: the warnings of the block, each with the number of times it was raised.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._early: list[str] = []
        self.warnings: dict[tuple[str, str, str, int], int] = {}

    def attach(self, path: Path) -> None:
        """Appends to a file from here on, what was printed before first."""
        if self._file is None:
            self._file = path.open("a", encoding="utf-8")
            self._file.writelines(self._early)
            self._file.flush()

    def write(self, line: str) -> None:
        """Adds a line."""
        if self._file is None:
            self._early.append(line)
        else:
            self._file.write(line)
            self._file.flush()

    @contextlib.contextmanager
    def copying(self) -> Iterator[None]:
        """Copies while the block runs; an exception that ends it is written as its traceback."""
        out, err = _Copied(sys.stdout, self), _Copied(sys.stderr, self)
        sys.stdout, sys.stderr = out, err  # type: ignore[assignment]  # what they lack, they take from the streams
        before, self.warnings = warnings.showwarning, {}

        def show(message: Any, category: Any, filename: str, lineno: int, *rest: Any, **more: Any) -> None:
            key = (str(message), category.__name__, filename, lineno)
            self.warnings[key] = self.warnings.get(key, 0) + 1
            before(message, category, filename, lineno, *rest, **more)

        warnings.showwarning = show
        try:
            yield
        except BaseException:
            self.write(traceback.format_exc())
            raise
        finally:
            if warnings.showwarning is show:
                warnings.showwarning = before
            # Another program may have replaced the streams since; then these stay and only pass on.
            sys.stdout = out.stream if sys.stdout is out else sys.stdout
            sys.stderr = err.stream if sys.stderr is err else sys.stderr
            out.end()
            err.end()
            file, self._file, self._early = self._file, None, []
            if file is not None:
                file.close()


class _Copied:
    """A text stream that copies whole lines to a console."""

    def __init__(self, stream: Any, console: Console):
        self.stream = stream
        self._console: Console | None = console
        self._line = ""

    def write(self, text: str) -> int:
        if self._console is not None:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._console.write(_shown(line) + "\n")
            self._line = self._line[self._line.rfind("\r", 0, -1) + 1 :]  # earlier frames of a bar are not needed
        return self.stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Copies a line without an end, and copies no more."""
        console, self._console = self._console, None
        if console is not None and _shown(self._line).strip():
            console.write(_shown(self._line) + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __iter__(self) -> Any:
        return iter(self.stream)


def _shown(line: str) -> str:
    """What a terminal shows of a line: what follows the last carriage return, without control sequences."""
    frames = [frame for frame in line.rstrip("\r").split("\r") if frame.strip()]
    return _ESCAPES.sub("", frames[-1]).rstrip() if frames else ""
