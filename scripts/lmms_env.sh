#!/usr/bin/env bash
# Make the environment of `make test-lmms`, lmms-eval beside this checkout's .venv, and print its path last.
#
# It has two layers. One holds lmms-eval and what it needs to run a task that lies on this machine; checkouts share it, so
# its name tells what is in it, and it is never changed once it is complete. The other, build/lmms-env, is this
# checkout's own: it borrows the packages of .venv, and behind them those of lmms-eval, and adds foveate as an installed
# package, for lmms-eval finds models by their entry points. PYTHON makes the first, .venv's own Python the second.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scripts=$root/scripts
source "$scripts/environments.sh"

python=${PYTHON:-python3}
version=0.7.3
filelock='filelock>=3.20,<4' # lmms-eval 0.7.3 imports filelock._api, which filelock 4 has no more
interpreter=$(interpreter_of "$python")
shared=$cache/lmms-eval-$version-$interpreter-$(digest "$scripts/lmms_requirements.txt")

make_shared() {
  echo "Installing lmms-eval $version into $shared, once: about a minute, 0.6 GB" >&2
  "$python" -m venv "$shared"
  "$shared/bin/python" -m pip install --quiet --no-deps "lmms-eval==$version" >&2 \
    || fail "pip could not install lmms-eval $version"
  # pip tells of all that lmms-eval wants besides.
  "$shared/bin/python" -m pip install --quiet --requirement "$scripts/lmms_requirements.txt" > "$shared/pip.log" 2>&1 \
    || fail "pip could not install what lmms-eval needs; see $shared/pip.log"
}

make_once "$shared" make_shared

own=$root/build/lmms-env
state="$shared $(cd "$scripts" && digest ../pyproject.toml environments.sh lmms_env.sh)"
make_layer() {
  "$root/.venv/bin/python" -m venv --without-pip "$own"
  borrow "$root/.venv" "$own"
  borrow "$shared" "$own"
  "$shared/bin/python" -m pip --python "$own/bin/python" install --quiet --no-deps "$filelock" >&2
  "$shared/bin/python" -m pip --python "$own/bin/python" install --quiet --no-deps --no-build-isolation \
    --editable "$root" >&2
  "$own/bin/python" -c 'import lmms_eval.models as m; m.get_model_manifest("foveate")' \
    || fail "lmms-eval does not find foveate's models in $own"
}

make_own "$own" "$state" make_layer
echo "$own"
