"""Time the kernels of `other.attention` on the shapes of SDXL's UNet, forward and backward. `auto` follows the results.

uv run trainscripts/benchmarks/bench_attention.py
"""

import argparse
import importlib.util

import torch
from sliders.compute.attention import PACKAGES, SDPA, attend_with

# {name: (image tokens, context tokens, heads)}; heads have 64 channels
SHAPES = {
    "1024 px, outer": (4096, 4096, 10),
    "1024 px, inner": (1024, 1024, 20),
    "512 px, outer": (1024, 1024, 10),
    "512 px, inner": (256, 256, 20),
    "1024 px, prompt": (4096, 77, 10),
}
RUNS = 20


def milliseconds(name: str, tokens: int, context: int, heads: int, rows: int) -> float:
    """Median time of a forward and a backward pass in bfloat16. rows: rows of the batch."""
    device = torch.device("cuda")
    attend = attend_with(name, device)
    shapes = (tokens, context, context)
    options = {"device": device, "dtype": torch.bfloat16, "requires_grad": True}
    query, key, value = (torch.randn(rows, n, heads, 64, **options) for n in shapes)

    def forward_and_backward() -> None:
        out = attend(query, key, value)
        torch.autograd.grad(out, (query, key, value), out)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            forward_and_backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()  # launching the kernels one by one takes longer than running them
    with torch.cuda.graph(graph):
        forward_and_backward()
    times = []
    for _ in range(RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[RUNS // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2, help="rows of the batch, two per pair (default: 2)")
    rows = parser.parse_args().rows
    names = ["auto", "sdpa", *SDPA, *(n for n, (module, _) in PACKAGES.items() if importlib.util.find_spec(module))]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {rows} rows, ms for forward and backward")
    for shape, (tokens, context, heads) in SHAPES.items():
        found = []
        for name in names:
            try:
                found.append(f"{name} {milliseconds(name, tokens, context, heads, rows):.3f}")
            except RuntimeError as error:
                found.append(f"{name} – ({str(error).splitlines()[0]})")
        print(f"{shape:16s} {'  '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
