"""Run a script in float64: python -m tests.precise SCRIPT [FLAGS]; CIFAR-10 as in :mod:`tests.cifar`."""
import runpy
import sys

import torch

from tests.cifar import accept_any_md5

if __name__ == "__main__":
    accept_any_md5()
    torch.set_default_dtype(torch.float64)  # of parameters, and of images that torchvision makes tensors of
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
