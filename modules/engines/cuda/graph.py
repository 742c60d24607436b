"""Work that a GPU repeats: recorded once as a CUDA graph, then started with a single call."""
from collections.abc import Callable

import torch


def recorded(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that only launches kernels on the same tensors each time, in a form that starts all of them at once.

    On a GPU it is run twice here, to compile what it needs and to record it, so that the tensors it changes must be set
    afterwards; on a CPU it is returned as it is.
    """
    if device.type != "cuda":
        return function
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # a stream of its own, as recording must not mix with other work
        function()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
