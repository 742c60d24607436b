"""What summing the gradients over processes costs, beside the training step whose gradients they are.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.allreduce [--model alexnetf]
"""
import statistics

import torch
import torch.distributed as dist

from benchmarks.speed import SCRIPTS, describe, parser, timed

if __name__ == "__main__":
    options = parser(__doc__, "model", "repeats", repeats=20).parse_args()
    gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo")
    device = torch.device("cuda", dist.get_rank() % max(1, torch.cuda.device_count())) if gpu else torch.device("cpu")
    experiment = SCRIPTS[options.model].EXPERIMENT
    parameters = experiment.build_model(experiment.arguments()).parameters()
    gradients = torch.zeros(sum(p.numel() for p in parameters), device=device)
    seconds = []
    for _ in range(options.repeats + 3):
        dist.barrier()
        seconds.append(timed(dist.all_reduce, gradients))
    if dist.get_rank() == 0:
        print(f"{options.model}: {gradients.nbytes / 2**20:.1f} MiB over {dist.get_world_size()} processes: "
              f"{1e3 * statistics.median(seconds[3:]):.1f} ms (median of {options.repeats}); {describe(device)}")
    dist.destroy_process_group()
