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
    chromium) # 100 MB of Debian's packages, unless the machine has the browser
        if ! command -v chromium >/dev/null; then
            if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
                echo "There is no program chromium on the PATH, and only root can install it, with apt-get: install Chromium, and run this again." >&2
                exit 1
            fi
            apt-get update --quiet
            DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes chromium
        fi
        pip install --quiet playwright==1.65.2
        ;;
    *)
        echo "$library is not treex, tensorflow, torch or chromium." >&2
        exit 1
        ;;
    esac
done
