#!/usr/bin/env python3
"""ConvNet-F, one convolutional layer with feedback to itself, on the event recordings of CIFAR10-DVS.

    python dvs_cifar_convnetf.py --path ./data/raw -c convnetf    with the published settings
    python dvs_cifar_convnetf.py --resume checkpoints/convnetf/checkpoint.pth.tar
    python dvs_cifar_convnetf.py --resume checkpoints/convnetf/model_best.pth.tar --evaluate
"""
import argparse

from torch.utils.data import DataLoader
from torchvision import transforms

from data.cifar10_dvs import CIFAR10DVS, CLASSES
from models import ConvNetF, dynamics
from modules import engines
from utils import experiment
from utils.loading import make_loaders

DEFAULTS = {
    "dataset": "cifar10-dvs",
    # Data
    "data_len": 30,  # frames of a recording
    "frames": "reference",
    # Simulation
    "time_step": 30,
    "time_step_back": 250,
    "drop": 0.0,
    # Optimisation
    "epochs": 70,
    "schedule": [50],
    "gamma": 0.1,
    "lr": 0.05,
    "warmup": 0,
    "train_batch": 128,
    "test_batch": 200,
    "scale_factor": 400.0,
}
DATASET_DEFAULTS = {"cifar10-dvs": {}}
AUGMENTATION = transforms.RandomCrop(48, padding=4)  # the same padding and crop for all frames of a recording


def build_model(args: argparse.Namespace) -> ConvNetF:
    return ConvNetF(num_classes=len(CLASSES), dropout=args.drop, **dynamics(args))


def build_loaders(args: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    train, test = (CIFAR10DVS(args.path, train=train, frames=args.data_len, transform=args.frames)
                   for train in (True, False))
    return make_loaders(train, test, args, transform=AUGMENTATION)


if __name__ == "__main__":
    experiment.main(__doc__, defaults=DEFAULTS, dataset_defaults=DATASET_DEFAULTS, engines=engines.NAMES,
                    precisions=engines.PRECISIONS,
                    build_model=build_model, build_loaders=build_loaders)
