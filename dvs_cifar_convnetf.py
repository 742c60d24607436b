#!/usr/bin/env python3
"""ConvNet-F, one convolutional layer with feedback to itself, on the event recordings of CIFAR10-DVS.

    python dvs_cifar_convnetf.py --path ./data/raw -c convnetf    with the published settings
    python dvs_cifar_convnetf.py --resume checkpoints/convnetf/checkpoint.pth.tar
    python dvs_cifar_convnetf.py --resume checkpoints/convnetf/model_best.pth.tar --evaluate
"""
import argparse

from torchvision import transforms

from data.cifar10_dvs import CIFAR10DVS, CLASSES
from data.frames import TRANSFORMS
from models import ConvNetF, dynamics
from utils.cli import AT_LEAST_1, Parser, path
from utils.experiment import Data, Experiment

DEFAULTS = {
    "dataset": "cifar10-dvs", "data_len": 30, "frames": "reference",
    # Simulation
    "time_step": 30, "time_step_back": 250, "drop": 0.0,
    # Optimisation
    "epochs": 70, "schedule": [50], "gamma": 0.1, "lr": 0.05, "warmup": 0,
    "train_batch": 128, "test_batch": 200, "scale_factor": 400.0,
}
DATASET_DEFAULTS = {"cifar10-dvs": {}}
AUGMENTATION = transforms.RandomCrop(48, padding=4)  # the same padding and crop for all frames of a recording


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument_group("event recordings").add_argument
    add("--data-len", type=int, must=AT_LEAST_1, experiment=True,
        help="frames that a recording is split into; the first --time_step of them are used")
    add("--frames", choices=tuple(TRANSFORMS), experiment=True,
        help="frame transform: as published, or the exact resize")
    add("--frames-path", type=path, metavar="DIR",
        help="folder for converted frames; by default beside the recordings")
    parser.checks.append(check)


def check(args: argparse.Namespace) -> None:
    if args.time_step > args.data_len:
        raise ValueError(f"--time_step ({args.time_step}) must not exceed --data-len ({args.data_len}), the frames "
                         "that there are")


def build_model(args: argparse.Namespace) -> ConvNetF:
    return ConvNetF(num_classes=len(CLASSES), dropout=args.drop, **dynamics.of(args))


def build_data(args: argparse.Namespace) -> Data:
    train, test = (CIFAR10DVS(args.path, train=train, frames=args.data_len, transform=args.frames,
                              cache=args.frames_path) for train in (True, False))
    return train, test, AUGMENTATION


EXPERIMENT = Experiment(__doc__, defaults=DEFAULTS, dataset_defaults=DATASET_DEFAULTS, build_model=build_model,
                        build_data=build_data, flags=[dynamics.add_arguments, add_arguments])

if __name__ == "__main__":
    EXPERIMENT.main()
