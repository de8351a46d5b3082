"""Triton's kernels compiled for a GPU that is not here: its compiler and NVIDIA's assembler come with the package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

HOPPER = 90  # compute capability of H100 and H200, times 10
_INT, _FLOAT, _FLOATS, _BYTES, _LONGS = "i32", "fp32", "*fp32", "*i8", "*i64"


def kernels(blocks: Sequence[int], tiles: Sequence[int], depths: Sequence[int]) -> Iterator[tuple[str, Any, Any, Any]]:
    """Each kernel with the types of its arguments, its constants, and how many warps it is launched with.

    Args:
        blocks: sizes of the greedy loops, powers of two. In that of 1 the width is a constant, as Triton makes it.
        tiles: of the similarities.
        depths: features per token for the similarities; width of a head for attention.
    """
    from foveate.importance.attention_triton import _logits_kernel, _normaliser_kernel, _shares_kernel
    from foveate.selection.triton import gram, greedy

    counts_and_keep = {"counts": _LONGS, "keep": _BYTES}
    loops: dict[str, tuple[Any, dict[str, str]]] = {
        "mmr": (greedy._mmr_kernel, {"bonus": _FLOATS, "first": _LONGS, "penalty": _FLOAT, "cosines": _FLOATS}),
        "maxmin": (greedy._maxmin_kernel, {"cosines": _FLOATS, "valid": _BYTES, "highest": _FLOATS, "never": _FLOAT}),
        "independent_set": (greedy._independent_set_kernel, {"edges": _BYTES, "key": "*i32"}),
        "coverage": (greedy._coverage_kernel, {"cosines": _FLOATS, "weight": _FLOATS, "gains": _FLOATS}),
        "dpp": (
            greedy._dpp_kernel,
            {
                **dict.fromkeys(("cosines", "relevance", "residual", "factor"), _FLOATS),
                **{"valid": _BYTES, "rank": _INT, "spanned": _FLOAT, "exhausted": _FLOAT},
            },
        ),
    }
    for block in blocks:
        for name, (kernel, types) in loops.items():
            constants: dict[str, Any] = {"BLOCK": block}
            if name == "dpp":
                constants["ROWS"] = max(1, min(8, 16384 // block))
            if block == 1:
                constants["width"] = 1
            yield f"{name}, {block}", kernel, ({**types, **counts_and_keep, "width": _INT}, constants), block
    types = {"cosines": _FLOATS, "valid": _BYTES, "highest": _FLOATS, "width": _INT, "never": _FLOAT}
    yield "highest, 1024", greedy._highest_kernel, (types, {"BLOCK": 1024}), 1024
    yield "highest, 1", greedy._highest_kernel, (types, {"BLOCK": 1, "width": 1}), 1024
    shared = {"inverse": _FLOATS, "valid": _BYTES, "cosines": _FLOATS, "width": _INT, "near_one": _FLOAT}
    for tile in tiles:
        for depth in depths:
            constants = {"depth": depth, "TILE": tile, "DEPTH": 64}
            yield f"gram, {tile} x {depth}", gram._gram_kernel, ({**shared, "features": "*bf16"}, constants), 2048
    numbers = dict.fromkeys(("length", "depth", "heads", "of_sequence", "of_head", "of_token"), _INT)
    for kind in (_FLOATS, "*bf16"):
        types = {"query": kind, "key": kind, "logits": _FLOATS, "scaling": _FLOAT, **numbers}
        yield f"attention_logits, {kind}", _logits_kernel, (types, {"GROUP": 7, "KEYS": 64, "DEPTH": 128}), 1024

    strides = (f"{kind}_{axis}" for kind in ("query", "key") for axis in ("image", "head", "row"))
    types = {"scale": _FLOAT, **dict.fromkeys(("queries", "keys", "depth", *strides), _INT)}
    types |= {"query": "*bf16", "key": "*bf16", "normaliser": _FLOATS, "shares": _FLOATS}
    constants = {"GROUP": 1, "MANY": 128, "FEW": 64, "DEPTH": 128}
    yield "attention_shares, normaliser", _normaliser_kernel, (types, constants), 2048
    yield "attention_shares", _shares_kernel, (types, constants), 2048


def compile_for(capability: int, kernel: Any, arguments: tuple[dict[str, str], dict[str, Any]], block: int) -> Any:
    """What Triton makes of a kernel for that compute capability; ``asm["cubin"]`` is the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants = arguments
    names: list[str] = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if signature[name].startswith("*")}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned)
    warps = min(16, max(1, block // 256))
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
