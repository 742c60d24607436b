"""Where the numbers of a run come from: its arguments, versions, device and source, kept in its folder."""
import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from utils.checkpoint import versions
from utils.files import write_atomically


def record(folder: Path, args: argparse.Namespace, device: str) -> None:
    """Write ``args.json`` and ``script.py``, a copy of the script that runs, into the folder of a run."""
    script = Path(sys.argv[0])
    arguments = {name: value for name, value in vars(args).items() if name != "changes"}
    contents = {"command": sys.argv, "arguments": arguments, "versions": versions(), "device": device,
                "git": git_state(script.resolve().parent)}
    write_atomically(folder / "args.json", (json.dumps(contents, indent=2, default=str) + "\n").encode())
    if script.is_file():
        write_atomically(folder / "script.py", script.read_bytes())


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the source in ``folder`` and whether files differ from it (``dirty``), or None without git."""
    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None
