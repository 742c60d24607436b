"""Settings of the whole suite."""
import pytest
import torch

from modules import notices

# Small networks spend more time waking threads than computing, above all when several processes share two cores.
torch.set_num_threads(1)
torch.manual_seed(0)  # for what modules draw while they are imported


@pytest.fixture(autouse=True)
def start_afresh():
    """Runs within this process seed its global generator, and warn once of what they cannot do."""
    notices.GIVEN.clear()  # what was said once in another test is said again
    torch.manual_seed(0)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
