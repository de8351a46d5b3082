#!/usr/bin/env bash
# Build the wheel, install it alone into a fresh environment that borrows only the dependencies of .venv, and run it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$root/.venv/bin/python" -m build --wheel --outdir "$work/dist" "$root"
"$root/.venv/bin/python" -m venv "$work/venv"
python=$work/venv/bin/python
"$python" -m pip install --quiet --no-deps "$work"/dist/foveate-*.whl

# A path in a .pth comes after the environment's own site-packages, and the .pth files in the borrowed folder, the
# editable install among them, are not read.
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
"$root/.venv/bin/python" -c "$purelib" > "$("$python" -c "$purelib")/borrowed.pth"

cd "$work" # so that nothing is imported from the source tree
HF_HUB_OFFLINE=1 "$python" -I "$root/scripts/wheel_check.py" "$work/venv"
