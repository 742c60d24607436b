"""What saving costs: milliseconds for a checkpoint of AlexNet-F, momentum included.

    python -m benchmarks.saving [--folder DIR] [--repeats 20]
"""
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.speed import parser, timed
from cifar_alexnetf import EXPERIMENT
from utils.checkpoint import LAST
from utils.experiment import make_optimizer
from utils.run import Run

if __name__ == "__main__":
    flags = parser(__doc__, "repeats", repeats=20)
    flags.add_argument("--folder", help="on the file system to measure; a temporary folder unless given")
    own = flags.parse_args()
    with tempfile.TemporaryDirectory(dir=own.folder) as folder:
        args = EXPERIMENT.arguments()
        model = EXPERIMENT.build_model(args)
        optimizer = make_optimizer(model, args)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        run = Run(args, Path(folder), 0, torch.device("cpu"), model, optimizer, None, None)
        milliseconds = [1e3 * timed(run.save) for _ in range(own.repeats)]
        size = (run.folder / LAST).stat().st_size
    print(f"{size / 2**20:.1f} MiB; {statistics.median(milliseconds):.0f} ms (median of {own.repeats}; "
          f"{min(milliseconds):.0f} to {max(milliseconds):.0f})")
