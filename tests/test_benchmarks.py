"""The benchmarks run, on noise and for few steps: a figure in the README is no use if nobody can measure it again."""
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import speed
from tests.processes import REPOSITORY, environment


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, env=environment(), capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_speed(tmp_path: Path) -> None:
    """Seconds of the entries and their ratio, printed and written; the scale is the experiment's own, 100 / 128.

    An entry with IDE says how many sweeps it took, one without feedback, and leaves the densities to those with spikes.
    """
    file = tmp_path / "speed.json"
    printed = run("benchmarks.speed", "--model", "lenet", "--batch", "2", "--engines", "dense", "event", "event+ide",
                  "--repeats", "1", "--json", str(file))
    found = json.loads(file.read_text())
    assert found["steps"] == [30, 100] and found["inputs"] == "noise" and found["scale_factor / batch"] == 100 / 128
    for stage in ("forward", "backward", "both"):
        seconds = {engine: found["seconds"][engine][stage] for engine in ("dense", "event")}
        assert min(seconds.values()) > 0
        assert found["ratio"]["event"][stage] == seconds["dense"] / seconds["event"]
    assert f"{found['ratio']['event']['both']:.2f}" in printed
    assert found["sweeps"] == {"event+ide": 1} and "sweeps: {'event+ide': 1}" in printed
    assert len(found["backward densities"]) == 5 and found["seconds"]["event+ide"]["backward"] > 0
    assert found["differences"]["dense"]["gradient"] == 0 < found["differences"]["event+ide"]["gradient"]
    assert f"{found['differences']['event+ide']['gradient']:.2g} |" in printed


def test_goals() -> None:
    """Of the figures of one network: which goals they reach."""
    seconds = {"dense": 7.0, "dense:compiled": 5.0, "cuda:tf32": 1.0, "cuda:bf16": 0.1}
    found = {"model": "alexnetf", "batch": 128, "seconds": {engine: {"both": own} for engine, own in seconds.items()},
             "floor, s": 0.05, "peak memory, GiB": {"dense": 4.0, "cuda:tf32": 3.0}}
    assert [(figure, reached) for _, figure, reached in speed.goals(found)] == [
        (7, True), (5, False), (0.75, True), (2, True), (391, False)]
    assert len(list(speed.goals({**found, "model": "cifarnetf"}))) == 3
