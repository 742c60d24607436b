"""Which goals of the CUDA engine the figures of benchmarks/gpu_suite.sh reach.

    python -m benchmarks.goals FOLDER
"""
import json
import sys
from pathlib import Path

ITERATIONS = 391  # of an epoch of CIFAR-10 at batch 128
SPEEDUP, FLOORS, EPOCH = 6, 2.5, 35  # times dense; times the floor of benchmarks.speed; seconds


def goals(name: str, found: dict) -> list[tuple[str, float, bool]]:
    """Each goal of a network in words, what was measured, and whether that reaches it.

    Args:
        found: the figures that ``benchmarks.speed --json`` writes.
    """
    seconds = {engine: own["both"] for engine, own in found["seconds"].items()}
    memory = found["peak memory, GiB"]
    rows = [(f"{name}: tf32 is at least {SPEEDUP} times as fast as {engine}", seconds[engine] / seconds["cuda:tf32"],
             seconds[engine] >= SPEEDUP * seconds["cuda:tf32"]) for engine in ("dense", "dense:compiled")]
    ratio = memory["cuda:tf32"] / memory["dense"]
    rows.append((f"{name}: peak memory of tf32 is at most that of dense", ratio, ratio <= 1))
    if name == "alexnetf":
        floors, epoch = seconds["cuda:bf16"] / found["floor, s"], ITERATIONS * seconds["cuda:tf32"]
        rows += [(f"{name}: bf16 takes at most {FLOORS} times the floor", floors, floors <= FLOORS),
                 (f"{name}: the simulations of an epoch of CIFAR-10 at tf32 take at most {EPOCH} s", epoch,
                  epoch <= EPOCH)]
    return rows


if __name__ == "__main__":
    for name in ("alexnetf", "cifarnetf"):
        file = Path(sys.argv[1], f"{name}.json")
        if not file.exists():
            print(f"{name}: not measured")
            continue
        for goal, figure, reached in goals(name, json.loads(file.read_text())):
            print(f"{'reached' if reached else 'MISSED '} {figure:8.2f}  {goal}")
