#!/usr/bin/env bash
# Test what touches transformers, and the packages that come with it, on the oldest release that foveate allows and on
# the newest that there is.
# A release newer than what foveate says that it was tested on does not fail for that alone, but is named at the end.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
export PYTHONPATH=src OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # as many processes as cores

for release in oldest newest; do
  environment=$(bash scripts/transformers_env.sh "$release")
  python=$environment/bin/python
  version=$("$python" -c 'import transformers; print(transformers.__version__)')
  echo "== transformers $version, the $release, with PyTorch $("$python" -c 'import torch; print(torch.__version__)')"
  "$python" -m pytest -n 2 -m 'not gpu and not vllm and not kernels and not slow' -p no:cacheprovider \
    tests/runtime tests/models tests/methods tests/importance tests/cli tests/evaluation tests/visualize
done

"$python" -W ignore - << 'END'
import transformers
from packaging.version import Version

from foveate.runtime.compat import TESTED

newest, tested = Version(transformers.__version__), Version(TESTED[1])
if newest.release[:2] > tested.release[:2]:
    print(
        f"********\n"
        f"NOTICE: the tests pass on transformers {newest}, which is newer than foveate says that it was tested on\n"
        f"({tested}), so that it warns its users. Raise TESTED in src/foveate/runtime/compat.py, and README.\n"
        f"********"
    )
END
