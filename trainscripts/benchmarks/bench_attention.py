"""Time the kernels of `other.attention` on the shapes of SDXL's and SD 1's UNets, forward and backward. `auto` follows the results.

uv run trainscripts/benchmarks/bench_attention.py
"""

import argparse
import importlib.util

import torch
from sliders.fast.attention import PACKAGES, SDPA, attend_with

# {name: (image tokens, context tokens, heads, channels of a head)}
SHAPES = {
    "1024 px, outer": (4096, 4096, 10, 64),
    "1024 px, inner": (1024, 1024, 20, 64),
    "512 px, outer": (1024, 1024, 10, 64),
    "512 px, inner": (256, 256, 20, 64),
    "1024 px, prompt": (4096, 77, 10, 64),
    "SD 1, outer": (4096, 4096, 8, 40),
    "SD 1, middle": (1024, 1024, 8, 80),
    "SD 1, inner": (256, 256, 8, 160),
    "SD 1, prompt": (4096, 77, 8, 40),
}
RUNS = 20


def milliseconds(name: str, tokens: int, context: int, heads: int, channels: int, rows: int) -> float:
    """Median time of a forward and a backward pass in bfloat16. rows: rows of the batch."""
    device = torch.device("cuda")
    attend = attend_with(name, device)
    shapes = (tokens, context, context)
    options = {"device": device, "dtype": torch.bfloat16, "requires_grad": True}
    query, key, value = (torch.randn(rows, n, heads, channels, **options) for n in shapes)

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
    for shape, sizes in SHAPES.items():
        found = []
        for name in names:
            try:
                found.append(f"{name} {milliseconds(name, *sizes, rows):.3f}")
            except RuntimeError as error:
                found.append(f"{name} – ({str(error).splitlines()[0]})")
        print(f"{shape:16s} {'  '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
