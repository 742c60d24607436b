"""What saving costs: milliseconds for a checkpoint of AlexNet-F, momentum included.

    python -m benchmarks.saving [--folder DIR] [--repeats 20]
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from cifar_alexnetf import EXPERIMENT
from utils.checkpoint import LAST
from utils.experiment import make_optimizer
from utils.run import Run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="on the file system to measure; a temporary folder unless given")
    parser.add_argument("--repeats", type=int, default=20)
    own = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=own.folder) as folder:
        args = EXPERIMENT.arguments()
        model = EXPERIMENT.build_model(args)
        optimizer = make_optimizer(model, args)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        run = Run(args, Path(folder), 0, torch.device("cpu"), model, optimizer, None, None)
        seconds = []
        for _ in range(own.repeats):
            start = time.perf_counter()
            run.save()
            seconds.append(time.perf_counter() - start)
        size = (run.folder / LAST).stat().st_size
    print(f"{size / 2**20:.1f} MiB; {1e3 * statistics.median(seconds):.0f} ms (median of {own.repeats}; "
          f"{1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f})")
