#!/usr/bin/env bash
# Prints the newest and the oldest supported Python of this machine, one a line: `3.13 /usr/bin/python3.13`.
# Prints one line if there is only one. Looks at PATH and at the versions that pyenv installed.
set -euo pipefail

candidates() {
    local name
    for name in python3 python python3.14 python3.13 python3.12 python3.11; do
        type -aP "$name" || true
    done
    shopt -s nullglob
    printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python
}

# A candidate may fail: a pyenv shim of a version that is not selected, or a system Python without venv.
usable() {
    local candidate
    while read -r candidate; do
        "$candidate" -c '
import sys, venv, ensurepip
version = sys.version_info
if (3, 11) <= version[:2] <= (3, 14) and version.releaselevel == "final":
    print(f"{version.major}.{version.minor}", sys.executable)
' 2>/dev/null </dev/null || true
    done
}

pythons=$(candidates | usable | sort --stable --version-sort --key=1,1 --unique)
if [ -z "$pythons" ]; then
    echo "No Python from 3.11 to 3.14 with venv was found on PATH or under pyenv." >&2
    exit 1
fi
{
    tail -n 1 <<<"$pythons"
    head -n 1 <<<"$pythons"
} | uniq
