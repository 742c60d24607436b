"""Settings of the whole suite."""
import torch

# Small networks spend more time waking threads than computing, above all when several processes share two cores.
torch.set_num_threads(1)
