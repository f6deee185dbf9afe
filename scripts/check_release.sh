#!/usr/bin/env bash
# Builds the wheel and the source distribution into the folder dist, installs each in a fresh environment, and runs the
# quick start there without the checkout:
#     scripts/check_release.sh
set -euo pipefail
export PIP_DISABLE_PIP_VERSION_CHECK=1
cd "$(dirname "$0")/.."

root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' elegy/__init__.py)

python -m venv "$work/build"
"$work/build/bin/pip" install --quiet build
rm -rf dist
"$work/build/bin/python" -m build --outdir dist . >"$work/build.log" || { cat "$work/build.log"; exit 1; }

for file in dist/*.whl dist/*.tar.gz; do
    fresh=$work/$(basename "$file")
    python -m venv "$fresh/venv"
    "$fresh/venv/bin/pip" install --quiet "$root/$file[examples]"
    cp examples/quickstart.py examples/shared.py "$fresh"
    (
        cd "$fresh"
        venv/bin/python -c '
import sys
from importlib.metadata import version
from pathlib import Path

import elegy

home = Path(elegy.__file__).parent
assert "site-packages" in home.parts, home
assert (home / "py.typed").exists()
assert elegy.__version__ == version("elegy") == sys.argv[1], (elegy.__version__, version("elegy"))
' "$version"
        venv/bin/python quickstart.py --output .
    ) >"$fresh/log" || { cat "$fresh/log"; exit 1; }
    echo "$file: $(tail -2 "$fresh/log" | head -1)"
done
