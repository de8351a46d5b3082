#!/usr/bin/env bash
# Make the environment of `make test-app`, gradio and playwright beside this checkout's .venv, and print its path last.
#
# Like that of ray_env.sh it has two layers: one that checkouts share, with gradio, playwright and what comes with them,
# and build/app-env, this checkout's own, which borrows the packages of .venv, and behind them those of the first. The
# browser is not in it: the tests drive a Chromium that is installed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scripts=$root/scripts
source "$scripts/environments.sh"

python=${PYTHON:-python3}
version=$(sed -n 's/^gradio==//p' "$scripts/app_requirements.txt")
interpreter=$(interpreter_of "$python")
shared=$cache/app-$version-$interpreter-$(digest "$scripts/app_requirements.txt")

make_shared() {
  echo "Installing gradio $version and playwright into $shared, once: about a minute, 0.6 GB" >&2
  "$python" -m venv "$shared"
  "$shared/bin/python" -m pip install --quiet --requirement "$scripts/app_requirements.txt" >&2 \
    || fail "pip could not install gradio $version"
}

command -v chromium chromium-browser google-chrome > /dev/null \
  || fail "there is no Chromium to drive; on Debian: apt-get install chromium"

make_once "$shared" make_shared

own=$root/build/app-env
state="$shared $(cd "$scripts" && digest environments.sh app_env.sh)"
make_layer() {
  "$root/.venv/bin/python" -m venv --without-pip "$own"
  borrow "$root/.venv" "$own"
  borrow "$shared" "$own"
  "$own/bin/python" -c 'import gradio, playwright, torch, foveate' || fail "gradio cannot be imported in $own"
}

make_own "$own" "$state" make_layer
echo "$own"
