"""The CUDA engine's kernels, compiled for an H100 as it would launch them: this needs no GPU, running them does."""
import os
import re
import subprocess
import sys

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from models import AlexNetF, LeNet
from modules.engines.cuda import engine as cuda
from modules.engines.cuda.chain import STEPS, Chain
from modules.engines.cuda.loop import Launch, Simulation
from modules.engines.ring import Ring, backward_ring, forward_ring
from tests.processes import REPOSITORY, environment

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
META = torch.device("meta")  # shapes without memory
BATCH = 128
SHARED_BYTES = 99 * 1024  # of a block, on a GPU with little; 227 KiB on an H100
REGISTERS, SPILLED_BYTES = 64 * 1024, 192  # of a multiprocessor; most of a thread


class H100:
    """What Triton asks its driver for when it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return -1  # a key of Triton's cache of kernels, apart from those of a GPU that there may be

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(autouse=True)
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", H100())


def rings(model: torch.nn.Module) -> tuple[Ring, Ring]:
    """Of both phases of training, dropout on."""
    network = model.to(META).train().network
    circuit, _ = network.bind(torch.empty(BATCH, *model.input_shape, device=META),
                              torch.empty(BATCH, dtype=torch.int64, device=META))
    masks = [torch.empty(BATCH, *c.output_shape, dtype=torch.bool, device=META) for c in circuit.feedforward]
    return forward_ring(circuit, 1.0, BATCH, META), backward_ring(circuit, 1.0, masks)


def compiled(launch: Launch, title: object) -> tuple[str, int, dict[str, int]]:
    """PTX, bytes of shared memory, and what ptxas says of registers (REG) and of what spills from them (STACK)."""
    kernel = launch.kernel.warmup(grid=launch.grid, **launch.arguments)
    with open(os.path.join(os.environ["TRITON_CACHE_DIR"], "kernel.cubin"), "wb") as file:
        file.write(kernel.asm["cubin"])
    report = subprocess.run([triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True,
                            text=True, check=True).stdout
    usage = {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", report)}
    print(f"{title}: {kernel.metadata.shared} bytes shared, {usage}")
    return kernel.asm["ptx"], kernel.metadata.shared, usage


if INTERPRETED:  # decided when Triton is imported, for the whole process, and there is nothing to compile then
    def test_with_the_compiler() -> None:
        """The tests below, in a process of their own."""
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", __file__], cwd=REPOSITORY, capture_output=True,
                              text=True, env=environment(TRITON_INTERPRET="0"), timeout=500)
        assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-5000:]
else:
    @pytest.mark.parametrize("precision", cuda.PRECISIONS)
    @pytest.mark.parametrize("phase, layer, skip", [
        ("forward", 0, False), ("forward", 3, False), ("backward", 2, False), ("backward", 2, True),
        ("backward", 3, True)])
    def test_layers_of_alexnetf(phase: str, layer: int, skip: bool, precision: str, tmp_path, monkeypatch) -> None:
        """Feedback that spreads, 384 to 384 channels in both directions, stride 2 backwards: tensor cores where the
        precision has them, loads that run ahead of products in words of 16 bytes, and two blocks fit into a
        multiprocessor, with few registers that spill for it."""
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        ring = rings(AlexNetF())[phase == "backward"]
        simulation = Simulation(ring, META, precision, counts=not skip, skip=skip)
        launch = simulation.launch(layer, torch.empty_like(simulation.potentials[0]), 0, 0)
        ptx, shared, usage = compiled(launch, (ring.routes[layer], precision, skip))
        found = set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)\S+\.(tf32|bf16)\b", ptx))
        assert found == (set() if precision == "fp32" else {"bf16"})
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", ptx)
        assert copies and set(copies) == {"0x10"}
        assert shared <= SHARED_BYTES and usage["STACK"] <= SPILLED_BYTES
        assert 2 * usage["REG"] * 32 * launch.arguments["num_warps"] <= REGISTERS

    @pytest.mark.parametrize("layer", range(4))
    def test_layers_of_lenet(layer: int, tmp_path, monkeypatch) -> None:
        """No route, pooling, odd numbers of channels, a linear map; products of some steps, apart from the neurons."""
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        for ring, skip in zip(rings(LeNet()), (False, True)):
            simulation = Chain(ring, META, "tf32", counts=not skip, skip=skip)
            launches = simulation.launches(layer, torch.empty_like(simulation.potentials[0])[None], 1, STEPS)
            assert len(launches) == (1 if layer == 0 else 2)
            for launch in launches:
                ptx, shared, usage = compiled(launch, (ring.routes[layer], skip))
                assert shared <= SHARED_BYTES and usage["STACK"] == 0
