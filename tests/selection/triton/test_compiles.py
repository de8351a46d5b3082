"""Every kernel becomes machine code for the GPUs that it is meant for, which the interpreter does not show."""

import pytest

pytest.importorskip("triton")

from triton_compiler import HOPPER, compile_for, kernels


@pytest.mark.kernels
def test_every_kernel_compiles(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, kernel, arguments, block in kernels(blocks=(128,), tiles=(64,), depths=(512,)):
        assert compile_for(HOPPER, kernel, arguments, block).asm["cubin"], name
