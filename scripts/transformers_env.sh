#!/usr/bin/env bash
# Make an environment with another release of transformers than .venv has, and print its path last.
#
#   transformers_env.sh oldest   the lower bound in pyproject.toml
#   transformers_env.sh newest   what `pip install transformers` fetches today; without the registry, the newest that
#                                is here already
#
# It has two layers, both outside the checkout: PyTorch, which is large, once for all; and one for each release, with
# transformers and all else as pip chooses it for a user of that release, but not foveate: set PYTHONPATH=src.
# PYTHON makes them.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scripts=$root/scripts
source "$scripts/environments.sh"
python=${PYTHON:-python3}

make_torch() {
  echo "Installing $torch_pin into $torch, once" >&2
  "$python" -m venv "$torch"
  "$torch/bin/python" -m pip install --quiet "$torch_pin" >&2 || fail "pip could not install $torch_pin"
}

make_release() {
  echo "Installing transformers $version into $release, once" >&2
  "$python" -m venv "$release"
  borrow "$torch" "$release" # before pip looks for torch
  "$release/bin/python" -m pip install --quiet "transformers==$version" "$torch_pin" "${requirements[@]}" \
    --requirement "$scripts/transformers_requirements.txt" >&2 || fail "pip could not install transformers $version"
  "$release/bin/python" -c "import transformers; assert transformers.__version__ == '$version', transformers" >&2
}

torch_pin=$(grep '^torch==' "$scripts/constraints.txt")
interpreter=$(interpreter_of "$python")
torch=$cache/${torch_pin/==/-}-$interpreter
make_once "$torch" make_torch

# foveate's own dependencies, one a line; the first one is the oldest transformers.
readarray -t requirements < <("$torch/bin/python" - "$root/pyproject.toml" << 'END'
import re
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    dependencies = tomllib.load(file)["project"]["dependencies"]
(oldest,) = (found[1] for line in dependencies if (found := re.match(r"transformers>=([\d.]+)", line)))
print(oldest if oldest.count(".") == 2 else f"{oldest}.0", *dependencies, sep="\n")
END
)
oldest=${requirements[0]}
requirements=("${requirements[@]:1}")
contents=$interpreter-$(
  digest "$scripts/constraints.txt" "$scripts/transformers_requirements.txt" <(printf '%s\n' "${requirements[@]}")
)

# The version that pip would install; nothing is installed.
ask_registry() {
  local report
  report=$("$torch/bin/python" -m pip install --quiet --dry-run --ignore-installed --no-deps --retries 1 --timeout 30 \
    --report - transformers) || return
  "$torch/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])' \
    <<< "$report"
}

newest_here() {
  for complete in "$cache"/transformers-*-"$contents"/.complete; do
    [ ! -e "$complete" ] || basename "$(dirname "$complete")" "-$contents" | cut -d - -f 2-
  done | sort --version-sort | tail -n 1
}

case ${1-} in
  oldest) version=$oldest ;;
  newest)
    if ! version=$(ask_registry); then
      version=$(newest_here)
      [ -n "$version" ] || fail "pip cannot reach the registry, and no release of transformers is in $cache"
      echo "NOTICE: pip cannot reach the registry: transformers $version is the newest release that is here" >&2
    fi
    ;;
  *) fail "say which release: oldest or newest" ;;
esac
release=$cache/transformers-$version-$contents
make_once "$release" make_release
echo "$release"
