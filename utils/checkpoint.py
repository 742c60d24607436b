"""Checkpoint files: whole ones only, and nothing that could run code.

A checkpoint is a dictionary of tensors, numbers, strings and plain containers, so it loads with ``weights_only=True``.
"""
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.errors import UserError
from utils.files import write_atomically
from utils.progress import say

LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"


class Stored(NamedTuple):
    """A checkpoint file and what it holds."""

    path: Path
    contents: dict[str, Any]
    stamp: tuple[int, int]

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the run that wrote it; none in a published checkpoint."""
        arguments = self.contents.get("arguments")
        return arguments if isinstance(arguments, dict) else {}

    def changed(self) -> bool:
        """Whether the file is another one now."""
        return not self.path.exists() or _stamp(self.path) != self.stamp


def save(folder: Path, checkpoint: Mapping[str, Any], *, best: bool) -> None:
    """Write ``checkpoint`` as the last one of a run, and as its best one too if it is."""
    contents = serialised(checkpoint)
    for name in (LAST, BEST) if best else (LAST,):
        write_atomically(folder / name, contents)


def serialised(checkpoint: Mapping[str, Any]) -> bytes:
    """The contents of a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    return buffer.getvalue()


def load(path: str | Path) -> Stored:
    """Read a checkpoint without running anything that it may contain.

    Raises:
        UserError: there is no such file, it is damaged, or it is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: check the name given to --resume")
    stamp = _stamp(path)
    reason = _fault(path)
    if reason is None:
        try:
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            contents = _with_state(checkpoint)
            if contents is not None:
                return Stored(path, contents, stamp)
            reason = "it holds no state_dict"
        except Exception as error:  # whatever random bytes make the reader stumble over
            reason = _refusal(str(error)) or f"{type(error).__name__} while reading"
    other = next((name for name in (LAST, BEST) if name != path.name and (path.parent / name).exists()), None)
    raise UserError(f"{path} is damaged or no checkpoint and was not loaded ({reason}): "
                    + (f"try {path.parent / other}" if other else "resume from another file"))


def find(resume: str, folder: Path) -> Stored | None:
    """The checkpoint that ``--resume`` means: a file, for 'auto' the newest good one in ``folder``, for '' none.

    Raises:
        UserError: there is no such file, or none that can be read.
    """
    return newest_good(folder) if resume == "auto" else load(resume) if resume else None


def newest_good(folder: Path) -> Stored | None:
    """What to go on from in the folder of a run: its last checkpoint, or, if that is damaged, its best one.

    Raises:
        UserError: there are checkpoints, but none that can be read.
    """
    fault = None
    for path in (folder / name for name in (LAST, BEST) if (folder / name).exists()):
        try:
            found = load(path)
        except UserError as error:
            fault = error
            continue
        if fault:
            say(f"warning: {fault}")
        return found
    if fault:
        raise UserError(f"no checkpoint in {folder} can be read: {fault}") from fault
    return None


def _with_state(checkpoint: Any) -> dict[str, Any] | None:
    """A checkpoint with a network under the name that we use, also if it is a bare one; None without a network."""
    if not isinstance(checkpoint, dict):
        return None
    if checkpoint and all(map(torch.is_tensor, checkpoint.values())):
        return {"state_dict": checkpoint}
    name = next((n for n in ("state_dict", "model_state_dict", "model") if isinstance(checkpoint.get(n), dict)), None)
    return name and {**checkpoint, "state_dict": checkpoint[name]}


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _fault(path: Path) -> str | None:
    """What is wrong with a file that should hold the bytes it was written with, or None.

    A checkpoint is a zip archive with a checksum of each of its parts, which torch.load does not look at. Checkpoints
    of old versions of PyTorch are no archives and have none.
    """
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return bad and f"the checksum of its part {bad} is wrong"
    except Exception as error:  # whatever random bytes make the reader stumble over
        return f"{type(error).__name__} while reading"


def _refusal(message: str) -> str | None:
    """Why ``torch.load`` did not load something that is more than data, without its advice to load it all the same."""
    match = re.search(r"(?:Unsupported|Trying to|GLOBAL) [^\n]*?(?=\. |\n|$)", message)
    return match and f"it is more than data: {match[0][:160]}"


# Old training scripts, the published ones among them, store accuracies as NumPy scalars, which are plain numbers.
NUMPY_SCALARS = [np._core.multiarray.scalar, np.dtype, *{type(np.dtype(t)) for t in (np.float32, np.float64, np.int64)}]
