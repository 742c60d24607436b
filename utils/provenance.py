"""Where the numbers of a run come from: its arguments, versions, device and source, kept in its folder."""
import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import write_atomically

WHERE = ("device", "versions", "git")  # a run may go on with others


def record(folder: Path, args: argparse.Namespace, *, seed: int, before: Path | None = None, **facts: Any) -> None:
    """Write ``args.json``, with further ``facts``, and ``script.py``, a copy of the script that runs, into a folder.

    ``before``: of a run that goes on, the folder that it comes from; what its ``args.json`` says of other devices,
    versions and commits is kept as ``earlier``.
    """
    script = Path(sys.argv[0])
    contents = {"command": sys.argv, "arguments": {**vars(args), "manualSeed": seed}, "versions": versions(),
                **facts, "git": git_state(script.resolve().parent)}
    earlier = _places(before) if before else []
    contents["earlier"] = [place for number, place in enumerate(earlier)
                           if place not in [*earlier[:number], {name: contents.get(name) for name in WHERE}]]
    write_atomically(folder / "args.json", (json.dumps(contents, indent=2) + "\n").encode())
    if script.is_file():
        write_atomically(folder / "script.py", script.read_bytes())


def _places(folder: Path) -> list[dict[str, Any]]:
    """Where a run has been so far; none, where nothing readable tells."""
    try:
        stored = json.loads((folder / "args.json").read_text())
        return [*stored.get("earlier", []), {name: stored.get(name) for name in WHERE}]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return []


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the source in ``folder`` and whether files differ from it (``dirty``), or None without git."""
    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
