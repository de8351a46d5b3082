#!/usr/bin/env bash
# Make the environment of `make test-ray`, Ray beside this checkout's .venv, and print its path last.
#
# It has two layers. One holds Ray and what comes with it; checkouts share it, so its name tells what is in it, and it is
# never changed once it is complete. The other, build/ray-env, is this checkout's own: it borrows the packages of .venv,
# and behind them those of Ray. PYTHON makes the first, .venv's own Python the second.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scripts=$root/scripts
source "$scripts/environments.sh"

python=${PYTHON:-python3}
version=$(sed -n 's/^ray.*==//p' "$scripts/ray_requirements.txt")
interpreter=$(interpreter_of "$python")
shared=$cache/ray-$version-$interpreter-$(digest "$scripts/ray_requirements.txt")

make_shared() {
  echo "Installing Ray $version into $shared, once: about a minute, 0.8 GB" >&2
  "$python" -m venv "$shared"
  "$shared/bin/python" -m pip install --quiet --requirement "$scripts/ray_requirements.txt" >&2 \
    || fail "pip could not install Ray $version"
}

make_once "$shared" make_shared

own=$root/build/ray-env
state="$shared $(cd "$scripts" && digest environments.sh ray_env.sh)"
make_layer() {
  "$root/.venv/bin/python" -m venv --without-pip "$own"
  borrow "$root/.venv" "$own"
  borrow "$shared" "$own"
  "$own/bin/python" -c 'import ray.data, ray.serve, torch, foveate' || fail "Ray cannot be imported in $own"
}

make_own "$own" "$state" make_layer
echo "$own"
