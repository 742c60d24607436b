"""How far each precision of the CUDA engine is from fp32: spikes, rates and gradients of AlexNet-F, for one batch.

    python -m benchmarks.precision [--batch 128] [--path DATA] [--device cuda]

Under ``TRITON_INTERPRET=1`` it runs on a CPU, slowly (``--device cpu --batch 1 --steps 3 --steps-back 3``).
"""
import argparse

import torch

from benchmarks.speed import data, describe, experiment, one_iteration
from cifar_alexnetf import build_model
from modules.engines.cuda import PRECISIONS

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--path", help="folder of the data sets; noise unless given")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--steps-back", type=int, default=250)
    parser.add_argument("--drive", type=float, help="scale_factor / batch; the experiment's own unless given")
    parser.set_defaults(seed=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    args = experiment("alexnetf", options)
    args.time_step, args.time_step_back = options.steps, options.steps_back
    model = build_model(args).to(options.device).train()
    inputs, labels, source = data("alexnetf", args)
    inputs, labels = inputs.to(options.device), labels.to(options.device)
    model.network.engine, found = "cuda", {}
    for precision in PRECISIONS:
        model.network.precision = precision
        spikes = one_iteration(model, inputs, labels, (options.drive or args.drive) * options.batch)[1]
        gradients = [p.grad.flatten().clone() for p in model.network.parameters()]
        found[precision] = spikes.forward_rates, spikes.backward_rates, torch.cat(gradients)
    print(f"AlexNet-F, batch {options.batch}, {options.steps} + {options.steps_back} steps, {source}; "
          f"{describe(torch.device(options.device))}\n")
    print("| precision | forward rates, largest relative difference of a layer | backward rates | gradient |")
    print("|---|---|---|---|")
    for precision, (forward, backward, gradient) in found.items():
        exact = found["fp32"]
        print(f"| {precision} | {((forward - exact[0]).abs() / exact[0].clamp(min=1e-12)).max():.2g} | "
              f"{((backward - exact[1]).abs() / exact[1].clamp(min=1e-12)).max():.2g} | "
              f"{(gradient - exact[2]).norm() / exact[2].norm().clamp(min=1e-30):.2g} |")
