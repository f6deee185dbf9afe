"""The README: its blocks run, and its commands are those that are tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from markdown_blocks import python_blocks, run_blocks

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_three_levels_run_and_learn(capsys):
    assert len(python_blocks(README)) == 3
    names = run_blocks(README)
    trainer = names["trainer"]
    losses = trainer.history.history["loss"]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert "val_accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_the_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_commands_are_those_that_ci_runs():
    commands = re.findall(r"```bash\n(.*?)\n```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert commands == [
        'pip install "elegy[flax]>=0.9" scikit-learn',
        'pip install -e ".[examples]" && python examples/quickstart.py',
        'pip install -e ".[test]" && pytest',
    ]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {"flax", "haiku", "equinox"} <= extras.keys()
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    checks = ("ruff check", "ruff format", "mypy", "basedpyright")
    for part in ('-e ".[test]"', "pytest", "python examples/quickstart.py", *checks):
        assert part in ci


def test_the_extras_of_all_pages_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = "".join(page.read_text(encoding="utf-8") for page in [README, *sorted((ROOT / "docs").glob("*.md"))])
    named = {extra.strip() for group in re.findall(r"elegy\[([\w, ]+)\]", text) for extra in group.split(",")}
    assert named <= extras.keys()
    assert {"grain", "clu", "metrax", "jax_metrics", "wandb", "mlflow", "trackio"} <= extras.keys()
