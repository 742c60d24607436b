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


def test_precision(tmp_path: Path) -> None:
    """A row for each precision: fp32 is what the others differ from, tf32 and bf16 in rates of the last layer."""
    file, precisions = tmp_path / "precision.json", ("fp32", "tf32", "bf16x2", "bf16")
    printed = run("benchmarks.speed", "--batch", "2", "-t", "8", "-tb", "20", "--drive", "400", "--repeats", "1",
                  "--engines", *(f"event:{precision}" for precision in precisions), "dense", "--json", str(file))
    found = json.loads(file.read_text())
    assert found["steps"] == [8, 20] and list(found["differences"])[-1] == "dense"
    fp32, tf32, _, bf16 = (found["differences"][f"event:{precision}"] for precision in precisions)
    assert fp32["forward"][-1] == 0 and fp32["gradient"] == 0
    assert tf32["forward"][-1] > 0 and bf16["forward"][-1] > 0 and bf16["gradient"] > 0
    row = next(line.split("|") for line in printed.splitlines()[::-1] if line.startswith("| event:bf16 "))
    assert float(row[2].split()[-1]) > 0 and float(row[4]) == float(f"{bf16['gradient']:.2g}")


def test_goals() -> None:
    """Of the figures of one network: which goals they reach."""
    seconds = {"dense": 7.0, "dense:compiled": 5.0, "cuda:tf32": 1.0, "cuda:bf16": 0.1}
    found = {"model": "alexnetf", "batch": 128, "seconds": {engine: {"both": own} for engine, own in seconds.items()},
             "floor, s": 0.05, "peak memory, GiB": {"dense": 4.0, "cuda:tf32": 3.0}}
    assert [(figure, reached) for _, figure, reached in speed.goals(found)] == [
        (7, True), (5, False), (0.75, True), (2, True), (391, False)]
    assert len(list(speed.goals({**found, "model": "cifarnetf"}))) == 3
