#!/usr/bin/env bash
# Installs libraries that tests marked `needs(library=...)` use and that the extra `test` leaves out:
#     scripts/install_needs.sh treex tensorflow torch
set -euo pipefail

for library in "$@"; do
    case $library in
    treex) # its requirements exclude current versions of JAX, NumPy and Flax
        pip install --quiet --no-deps treex==0.6.9 treeo==0.0.9
        pip install --quiet einops pyyaml flax
        ;;
    tensorflow) # 1.3 GB on disk
        pip install --quiet tensorflow-cpu==2.21.0
        ;;
    torch) # 3 GB to download where the package index has only the CUDA build
        pip install --quiet torch==2.13.0 torchdata==0.11.0
        ;;
    chromium) # 100 MB of Debian's packages: not in CI
        apt-get install --quiet --yes chromium
        pip install --quiet playwright==1.65.2
        ;;
    *)
        echo "$library is not treex, tensorflow, torch or chromium." >&2
        exit 1
        ;;
    esac
done
