"""Settings of the whole suite."""
import pytest
import torch

# Small networks spend more time waking threads than computing, above all when several processes share two cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def undo_random_state():
    """Runs within this process seed its global generator."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
