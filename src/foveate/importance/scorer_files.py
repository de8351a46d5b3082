"""The files of a learned scorer: found in a folder or on the hub, and read without executing anything.

Two layouts are read: a file with the four tensors alone (under any common prefix), and a whole checkpoint, sharded or
not, in which they lie under ``...importance_scorer.``, as training leaves them. Only safetensors.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import MethodError
from ..files import expand

KEYS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
SHIPPED = "foveate-scorer.safetensors"  # the scorer that lies in a model's own folder
_NAMED = r"foveate-scorer(-(?P<part>encoder|layer)-(?P<number>\d+))?\.safetensors"


def shipped_name(at: str = "") -> str:
    """The name of the scorer in a model's own folder that was trained for a place, see `ModelFacts.at`.

    Examples:
        >>> from foveate.importance.scorer_files import shipped_name
        >>> shipped_name(), shipped_name("encoder:8")
        ('foveate-scorer.safetensors', 'foveate-scorer-encoder-8.safetensors')
    """
    return SHIPPED.replace(".", f"-{at.replace(':', '-')}.", 1) if at else SHIPPED


_MODULE = "importance_scorer."  # the scorer's name inside a whole checkpoint
_INDEX = "*.safetensors.index.json"


def read_tensors(source: str, revision: str | None = None, at: str = "") -> tuple[list[Tensor], str | None]:
    """The tensors `KEYS` of a scorer in a ``.safetensors`` file, a folder that holds one, or a repository on the hub.

    With them comes the place that it was trained for, see `ModelFacts.at`, or None where nothing tells.

    In a model's own folder it is that which was trained for the place `at`, see `shipped_name`. Of a sharded checkpoint
    on the hub only the shards that hold the scorer are fetched.

    Raises:
        MethodError: when nothing is found there, or the tensors are not those of a scorer.
    """
    tensors: dict[str, Tensor] = {}
    strays: list[str] = []
    files = _find_files(source, revision, at)
    for file in files:
        found, others = _read_file(source, file)
        tensors |= found
        strays += others
    prefix = next((key.removesuffix(KEYS[0]) for key in sorted(tensors) if key.endswith(KEYS[0])), "")
    wanted = [prefix + key for key in KEYS]
    missing, extra = sorted(set(wanted) - tensors.keys()), sorted((tensors.keys() - set(wanted)) | set(strays))
    if missing or extra:
        raise MethodError(
            f"scorer {source}: it must hold exactly {', '.join(KEYS)} (a common prefix is fine); "
            f"missing: {_format_keys(missing)}; unexpected: {_format_keys(extra)}."
        )
    return [tensors[key] for key in wanted], "" if _MODULE in prefix else _trained_for(files[0])


def _trained_for(file: Path) -> str | None:
    """The place that a scorer was trained for, by its file's name or by what its training wrote beside it."""
    if named := re.fullmatch(_NAMED, file.name):
        return f"{named['part']}:{named['number']}" if named["part"] else ""
    try:
        card = json.loads((file.parent / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(card.get("at", "")) if isinstance(card, dict) and "gate" in card else None


def _format_keys(keys: list[str]) -> str:
    return (", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")) or "none"


def _read_file(source: str, file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The scorer's tensors of one file, and the names of tensors that have no business beside a scorer."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            names = list(opened.keys())
            inner = [name for name in names if _MODULE in name]
            chosen = inner or [name for name in names if name.endswith(KEYS)]
            # Beside `importance_scorer.` lies the rest of its model; without it, anything else means a wrong file.
            strays = [] if inner else sorted(set(names) - set(chosen))
            return {name: opened.get_tensor(name) for name in chosen}, strays
    except (SafetensorError, OSError) as error:
        raise MethodError(f"scorer {source}: {file} is not a readable safetensors file ({error}).") from error


def _find_files(name: str, revision: str | None, at: str) -> list[Path]:
    """The files that hold the scorer, fetched where `name` is a hub id."""
    path = expand(name)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise MethodError(f"scorer {name}: only .safetensors files are read; convert it first.")
        return [path]
    if (path / shipped_name(at)).is_file():  # a model's folder, with a scorer beside the model's own weights
        return [path / shipped_name(at)]
    fetch = not path.is_dir()
    if fetch:
        if path.is_absolute() or name.startswith(".") or name.count("/") != 1 or path.suffix == ".safetensors":
            raise MethodError(f"scorer {name}: no such file or folder, and not a hub id of the form owner/name.")
        path = _fetch(name, revision, [_INDEX])
    shards = _find_shards(name, path)
    if fetch:
        path = _fetch(name, revision, shards or ["*.safetensors"])
    files = [path / shard for shard in shards] or sorted(path.glob("*.safetensors"))
    if shards and (absent := [file.name for file in files if not file.is_file()]):
        raise MethodError(
            f"scorer {name}: the index names {absent[0]}, which is not there; get the complete checkpoint."
        )
    if not files:
        raise MethodError(
            f"scorer {name}: of .safetensors files, found none there{_pickle_note(path)}; give a folder that holds one."
        )
    if len(files) != 1 and not shards:
        names = ", ".join(file.name for file in files[:4]) + (" and others" if len(files) > 4 else "")
        raise MethodError(f"scorer {name}: found {len(files)} .safetensors files ({names}); give the file itself.")
    return files


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The local folder of a repository, with the files that match fetched; offline, whatever the cache holds of it."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        try:  # a pinned commit is looked up on the hub even where it is cached
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        except (OSError, ValueError):
            raise MethodError(f"scorer {name}: not a folder here, and the hub does not give it ({reason}).") from error


def _find_shards(name: str, folder: Path) -> list[str]:
    """The shards of a checkpoint's index that hold the scorer; none where there is no index."""
    index = next(iter(sorted(folder.glob(_INDEX))), None)
    if index is None:
        return []
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(file) for key, file in places.items() if _MODULE in key})
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise MethodError(f"scorer {name}: {index.name} is damaged ({type(error).__name__}); get it again.") from error
    if not shards:
        raise MethodError(
            f"scorer {name}: this checkpoint holds no scorer, nothing in {index.name} is under {_MODULE}*."
        )
    if any(Path(shard).name != shard or not shard.endswith(".safetensors") for shard in shards):
        raise MethodError(f"scorer {name}: {index.name} names files that are not safetensors shards beside it.")
    return shards


def _pickle_note(folder: Path) -> str:
    pickled = any(folder.glob(pattern) for pattern in ("*.bin", "*.pt", "*.pth"))
    return " (only pickled weights, which are never read because they can run code)" if pickled else ""
