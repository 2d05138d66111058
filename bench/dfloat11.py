"""DFloat11's buffers decoded by our kernel and by the official one, in one run.

python bench/dfloat11.py [--ptx decode.ptx] [--weights 4194304,16777216] [--json FILE]

`decode.ptx` lies in the dfloat11 package (pip download --no-deps dfloat11); without it only ours is timed. Both read
the same buffers of Gaussian weights and are checked bit for bit.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from dfloat11_ptx import Launch, Prepare, official

from tersor.kernels import measure
from tersor.kernels.dfloat11 import device as dfloat11
from tersor.kernels.dfloat11.encode import encode
from tersor.kernels.dfloat11.layout import Buffers
from tersor.kernels.launcher import shared_limit

WEIGHTS = (1 << 22, 1 << 24, 1 << 27, 128256 * 4096)


def ours(groups: int) -> Prepare:
    """Our kernel, so many groups of warps to a multiprocessor."""

    def prepare(buffers: Buffers) -> Launch:
        return partial(dfloat11.decode, buffers, decoding=dfloat11.Decoding(groups))

    return prepare


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ptx", type=Path)
    parser.add_argument("--weights", default=",".join(map(str, WEIGHTS)))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    measure.warm_up(device)
    best = dfloat11.Decoding.fitting(shared_limit(device)).groups
    names = [*(f"ours, {g} groups" for g in range(best, 0, -1)), *(["official"] if args.ptx else [])]
    kernels: list[Prepare] = [ours(g) for g in range(best, 0, -1)]
    if args.ptx:
        kernels.append(official(args.ptx))
    rows = []
    print(f"{'GB/s of bfloat16':>20}{'bpw':>9}" + "".join(f"{name:>16}" for name in names) + f"{'ratio':>8}")
    for n in map(int, args.weights.split(",")):
        weight = torch.empty(n, device=device, dtype=torch.bfloat16)
        for piece in weight.split(1 << 26):
            piece.copy_(torch.randn(len(piece), device=device) * 0.02)
        buffers = encode(weight)
        out = torch.empty_like(weight)
        for name, prepare in zip(names, kernels, strict=True):
            out.view(torch.int16).fill_(-1)
            prepare(buffers)(out)
            same = torch.equal(out.view(torch.int16), weight.view(torch.int16))
            assert same, f"{name}: {n} weights do not decode to the original bits"
        many = [buffers] + [
            Buffers(*(tensor.clone() for tensor in vars(buffers).values()))
            for _ in range(measure.copies(buffers.nbytes) - 1)
        ]
        times = measure.seconds(*([partial(prepare(b), out) for b in many] for prepare in kernels))
        bits = 8 * buffers.nbytes / n
        ratio = times[-1] / times[0] if args.ptx else None
        rows.append(
            {"weights": n, "bits": bits, "ratio": ratio, "seconds": dict(zip(names, times, strict=True))}
        )
        speeds = "".join(f"{2e-9 * n / seconds:16.0f}" for seconds in times)
        print(f"{n:20}{bits:9.3f}{speeds}{f'{ratio:8.2f}' if ratio else '':>8}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
