#!/usr/bin/env python3
"""CIFARNet-F, the wider network of five convolutional layers with feedback, on CIFAR-10 or CIFAR-100.

    python cifar_cifarnetf.py --path ./data/raw -c cifarnetf  CIFAR-10 with the published settings
    python cifar_cifarnetf.py -d cifar100 --path ./data/raw -c cifarnetf100
    python cifar_cifarnetf.py --resume checkpoints/cifarnetf/checkpoint.pth.tar
    python cifar_cifarnetf.py --resume checkpoints/cifarnetf/model_best.pth.tar --evaluate
"""
import argparse

from torchvision import transforms

from data import images
from models import CIFARNetF, dynamics
from utils.experiment import Data, Experiment

DEFAULTS = {
    "dataset": "cifar10",
    # Simulation; dropout of every synapse
    "time_step": 30, "time_step_back": 250, "drop": 0.25,
    # Optimisation
    "epochs": 100, "schedule": [50, 75], "gamma": 0.1, "lr": 0.05, "warmup": 400,
    "train_batch": 128, "test_batch": 200, "scale_factor": 400.0,
}
DATASET_DEFAULTS = {"cifar10": {}, "cifar100": {"scale_factor": 500.0}}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
AUGMENTATION = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]


def build_model(args: argparse.Namespace) -> CIFARNetF:
    return CIFARNetF(num_classes=images.NUM_CLASSES[args.dataset], dropout=args.drop, **dynamics.of(args))


def build_data(args: argparse.Namespace) -> Data:
    return images.normalised(args.dataset, args.path, mean=MEAN, std=STD, augmentation=AUGMENTATION)


EXPERIMENT = Experiment(__doc__, defaults=DEFAULTS, dataset_defaults=DATASET_DEFAULTS, build_model=build_model,
                        build_data=build_data, flags=[dynamics.add_arguments])

if __name__ == "__main__":
    EXPERIMENT.main()
