"""Run cifar_alexnetf.py with few channels: python -m tests.narrow FLOAT_TYPE SCRIPT [FLAGS]; data as in tests.cifar."""
import functools
import runpy
import sys

import torch

import models
from tests.cifar import accept_any_md5

if __name__ == "__main__":
    accept_any_md5()
    torch.set_default_dtype(getattr(torch, sys.argv[1]))  # of parameters, and of images as torchvision makes them
    models.AlexNetF = functools.partial(models.AlexNetF, widths=(8, 12, 16, 16, 12))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
