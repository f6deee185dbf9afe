"""Counts compilations: of `fit` with validation and short last batches, then of a second `fit`."""

from __future__ import annotations

import json
from collections import Counter

from benchmarks.children import child
from benchmarks.options import Options
from benchmarks.pairs import Row
from benchmarks.works import DIGITS

STEPS = ("train", "test")


def run(options: Options) -> list[Row]:
    """Counts compiled step functions; the goals are one for each phase, and none for the second `fit`."""
    first, second = child("compiles")
    rows = []
    for phase in STEPS:
        count = sum(n for name, n in first.items() if name.startswith(f"jit({phase}_step"))
        rows.append(Row(f"{phase} step, fit + validation", "one", "compiles", [count], [1], 1.0))
    note = ", ".join(f"{name} x{n}" for name, n in second.items())
    # One is added on both sides, because a ratio to zero is undefined.
    total = sum(second.values())
    rows.append(Row("second fit, all functions, plus 1", "one", "compiles", [1 + total], [1], 1.0, note))
    return rows


def main() -> None:
    """Prints the functions that the backend compiled in each of the two calls, by name."""
    import jax

    from benchmarks.ours import trainer_for

    names: list[str] = []

    def listen(event: str, duration: float, **more: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(more.get("fun_name", "?"))

    x, y = DIGITS.data(1_000)
    trainer = trainer_for(DIGITS)
    jax.monitoring.register_event_duration_secs_listener(listen)
    counts = []
    for _ in range(2):
        names.clear()
        trainer.fit(x, y, batch_size=64, epochs=2, validation_data=(x[:333], y[:333]), verbose=0)
        counts.append(Counter(names))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
