"""The examples run, short; the quick start reaches what it promises."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# What each returns, and bounds that a model which learns nothing does not reach within the epochs.
SHORT = {
    "char_transformer": (1, {"loss": (0.0, math.log(96))}),
    "conv_batchnorm": (2, {"accuracy": (0.5, 1.0)}),
    "core_digits": (2, {"accuracy": (0.5, 1.0)}),
    "equinox_diabetes": (10, {"r2": (0.0, 1.0)}),
    "gan": (1, {"generator_loss": (0.0, 10.0), "discriminator_loss": (0.0, 10.0)}),
    "gpt": (1, {"loss": (0.0, 0.8 * math.log(256))}),
    "haiku_rows": (2, {"accuracy": (0.5, 1.0), "f1": (0.3, 1.0)}),
    "lora_digits": (8, {"accuracy": (0.8, 1.0), "difference": (-1.0, 1e-4)}),  # five classes: 0.2
    "managed_digits": (2, {"accuracy": (0.5, 1.0)}),
    "multi_task": (4, {"digit_accuracy": (0.5, 1.0), "lower_mean_absolute_error": (0.0, 0.2)}),
    "nnx_digits": (2, {"accuracy": (0.5, 1.0)}),
    "packed_language_model": (1, {"loss": (0.0, 3.0)}),  # uniform characters: 4.6
    "tabular_cross_validation": (20, {"r2": (0.3, 0.7), "worst_fold": (0.1, 0.7)}),
    "vae": (1, {"loss": (0.0, 200.0), "kl": (0.0, 100.0)}),
}

FIGURES = {"gan": ["gan.png"], "vae": ["vae.png"]}


@pytest.fixture
def main(request, monkeypatch):
    """The `main` function of the example that the test names, imported as a script would be."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(request.param).main


def test_every_example_is_tested():
    programs = {path.stem for path in EXAMPLES.glob("*.py")} - {"shared"}
    assert programs == {*SHORT, "quickstart", "cli_diabetes", "cli_digits"}  # tests/cli runs the last two


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "epochs", "bounds"), [(k, *v) for k, v in SHORT.items()], indirect=["main"], ids=SHORT
)
def test_example_runs_short(main, epochs, bounds, tmp_path):
    scores = main(["--epochs", str(epochs), "--output", str(tmp_path)])
    for name, (low, high) in bounds.items():
        assert low < scores[name] <= high, name
    drawn = [path.name for path in tmp_path.iterdir() if path.read_bytes().startswith(b"\x89PNG")]
    assert drawn == FIGURES.get(main.__module__, [])


@pytest.mark.slow
@pytest.mark.parametrize("main", ["gpt"], indirect=True)
def test_gpt_takes_a_strategy_a_precision_and_a_prompt(main, tmp_path, capsys):
    options = ["--strategy", "fsdp", "--precision", "mixed_bfloat16", "--remat", "--prompt", "import "]
    scores = main(["--epochs", "1", "--output", str(tmp_path), *options])
    assert scores["loss"] < 0.8 * math.log(256)
    assert "\nimport " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("main", ["quickstart"], indirect=True)
def test_quickstart_recognises_digits_of_the_test_set(main, tmp_path, capsys):
    scores = main(["--output", str(tmp_path)])
    assert scores["accuracy"] >= 0.96
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert "30/30" in capsys.readouterr().out
