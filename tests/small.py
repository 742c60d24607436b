"""A small experiment of our own, which trains in a second within the test's process."""
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from models import LeNet, dynamics
from utils.experiment import Experiment, make_optimizer
from utils.run import Run

IMAGES, LABELS = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


def add_flags(parser) -> None:
    """Flags of a script's own."""
    parser.add_argument("--noise_level", type=float, default=0.5, experiment=True, help="added to each pixel")
    parser.add_argument("--pick", type=int, nargs="*", default=[0, 1], help="channels")
    parser.checks.append(check)


def check(args) -> None:
    if args.noise_level < 0:
        raise ValueError(f"--noise_level must not be negative, but is {args.noise_level}")


def small(**changes) -> Experiment:
    """An experiment of a few seconds on noise."""
    def build_model(args):
        return LeNet(widths=(2, 3, 8), image_size=8, num_classes=3, dropout=args.drop, **dynamics.of(args))

    def build_data(args):
        data = TensorDataset(IMAGES, LABELS)
        return data, data, lambda x: x + args.noise_level * torch.rand(())

    settings = {"defaults": {"dataset": "noise", "epochs": 2, "lr": 0.1, "train_batch": 8, "test_batch": 24,
                             "workers": 0, "scale_factor": 100.0, "time_step": 4, "time_step_back": 6,
                             "engine": "dense", "gpu_id": "-1"},
                "dataset_defaults": {"noise": {}, "louder": {"noise_level": 2.0}}, "build_model": build_model,
                "build_data": build_data, "flags": [dynamics.add_arguments, add_flags]}
    return Experiment("A manual.", **{**settings, **changes})


def made(folder: Path, *flags: object, **changes) -> Run:
    """A run of it, seed 3, that has not begun."""
    experiment = small(**changes)
    args = experiment.arguments([*map(str, flags)])
    model = experiment.build_model(args)
    return Run(args, folder, 3, torch.device("cpu"), model, make_optimizer(model, args),
               *experiment.loaders(args, seed=3))


def stored(folder: Path, name: str = "checkpoint.pth.tar") -> dict[str, Any]:
    """A checkpoint of a run."""
    return torch.load(folder / name, weights_only=True)
