"""The scripts that `.ci/run` calls."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def find_pythons(path: Path) -> subprocess.CompletedProcess:
    """Runs the search where PATH and pyenv hold the programs below `path` and no other Python."""
    tools = path / "tools"
    tools.mkdir()
    for name in ("bash", "sort", "tail", "head", "uniq"):
        (tools / name).symlink_to(shutil.which(name))
    env = {"PATH": f"{path / 'bin'}:{tools}", "PYENV_ROOT": str(path / "pyenv")}
    script = [shutil.which("bash"), SCRIPTS / "find_pythons.sh"]
    return subprocess.run(script, env=env, capture_output=True, text=True, check=False)


def program(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{line}\n")
    path.chmod(0o755)


def test_the_newest_and_the_oldest_python_are_found(tmp_path):
    program(tmp_path / "bin" / "python3.13", "exit 127")  # a shim of a version that is not selected
    program(tmp_path / "bin" / "python3.12", "echo 3.12 /a/python3.12")
    program(tmp_path / "bin" / "python3", "echo 3.11 /b/python3")
    program(tmp_path / "bin" / "python", "true")  # 3.9: not supported
    program(tmp_path / "pyenv" / "versions" / "3.13.1" / "bin" / "python", "echo 3.13 /c/python")
    assert find_pythons(tmp_path).stdout.splitlines() == ["3.13 /c/python", "3.11 /b/python3"]


def test_a_single_python_is_found_once(tmp_path):
    program(tmp_path / "bin" / "python3", "echo 3.12 /a/python3")
    program(tmp_path / "bin" / "python3.12", "echo 3.12 /a/python3")
    assert find_pythons(tmp_path).stdout.splitlines() == ["3.12 /a/python3"]


def test_a_machine_without_a_supported_python_is_told(tmp_path):
    done = find_pythons(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "No Python from 3.11 to 3.14" in done.stderr


def install_chromium(path: Path) -> subprocess.CompletedProcess:
    """Runs the installation where the PATH holds nothing but `id` and the programs in `path`."""
    (path / "id").symlink_to(shutil.which("id"))
    script = [shutil.which("bash"), SCRIPTS / "install_needs.sh", "chromium"]
    return subprocess.run(script, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


def test_a_browser_that_cannot_be_installed_is_told(tmp_path):
    done = install_chromium(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no program chromium on the PATH" in done.stderr


def test_a_browser_that_is_there_is_not_installed_again(tmp_path):
    for name in ("chromium", "apt-get", "pip"):
        (tmp_path / name).write_text(f'#!{shutil.which("bash")}\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    done = install_chromium(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["pip"]


@pytest.mark.parametrize(
    "script", sorted([*SCRIPTS.glob("*.sh"), SCRIPTS.parent / ".ci" / "run"]), ids=lambda p: p.name
)
def test_the_syntax_of_a_script_is_right(script):
    subprocess.run(["bash", "-n", script], check=True)
