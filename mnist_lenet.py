#!/usr/bin/env python3
"""LeNet, a network without feedback, on MNIST, Fashion-MNIST or scikit-learn's digits.

    python mnist_lenet.py -d digits                              minutes on a CPU, nothing to download
    python mnist_lenet.py --path ./data/raw -c lenet             MNIST with the published settings
    python mnist_lenet.py --resume checkpoints/lenet/checkpoint.pth.tar
    python mnist_lenet.py --resume checkpoints/lenet/model_best.pth.tar --evaluate
"""
import argparse

from data import images
from models import LeNet, dynamics
from utils.experiment import Data, Experiment

DEFAULTS = {
    "dataset": "mnist",
    # Simulation; dropout of the fully connected synapse
    "time_step": 30, "time_step_back": 100, "drop": 0.5,
    # Optimisation
    "epochs": 60, "schedule": [20, 40], "gamma": 0.1, "lr": 0.1, "warmup": 0,
    "train_batch": 128, "test_batch": 200, "scale_factor": 100.0,
}
DATASET_DEFAULTS = {
    "mnist": {},
    "fashionmnist": {},
    # A small dataset wants small batches; scale_factor / train_batch stays MNIST's, so each sample's gradient does too.
    "digits": {"train_batch": 32, "scale_factor": 25.0, "epochs": 16, "schedule": [11], "workers": 0},
}
MEAN, STD = (0.1307,), (0.3081,)


def build_model(args: argparse.Namespace) -> LeNet:
    return LeNet(num_classes=images.NUM_CLASSES[args.dataset], dropout=args.drop, **dynamics.of(args))


def build_data(args: argparse.Namespace) -> Data:
    return images.normalised(args.dataset, args.path, mean=MEAN, std=STD)


EXPERIMENT = Experiment(__doc__, defaults=DEFAULTS, dataset_defaults=DATASET_DEFAULTS, build_model=build_model,
                        build_data=build_data, flags=[dynamics.add_arguments])

if __name__ == "__main__":
    EXPERIMENT.main()
