"""Work that a GPU repeats: recorded once as a CUDA graph, then started with a single call."""
from collections.abc import Callable

import torch


class Replay:
    """Calls of a function that only launches kernels on the same tensors each time.

    On a GPU the first call runs it twice, to compile what it needs and to record it, so that the tensors it changes
    must be set afterwards; :meth:`prepare` does that early. On a CPU it is just called.

    Args:
        function: what to repeat; device: where its kernels run.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function, self._device = function, device
        self._graph: torch.cuda.CUDAGraph | None = None

    def prepare(self) -> None:
        """Compile and record, if this has not been done; leaves the tensors in any state."""
        if self._device.type != "cuda" or self._graph is not None:
            return
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):  # a stream of its own, as recording must not mix with other work
            self._function()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._function()
        self._graph = graph

    def __call__(self) -> None:
        if self._graph is None:
            self._function()
        else:
            self._graph.replay()
