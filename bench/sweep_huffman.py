"""Decode and encode speed of the huffman codec on this GPU, checked bit for bit.

PYTHONPATH=src python bench/sweep_huffman.py
"""

from __future__ import annotations

import torch

from tersor.kernels import measure, ops
from tersor.kernels.huffman import device


def main() -> None:
    measure.warm_up(torch.device("cuda"))
    for rows, cols in [
        (1024, 4096),
        (4096, 4096),
        (14336, 4096),
        (28672, 4096),
        (4096, 14336),
        (128256, 4096),
        (57344, 8192),
    ]:
        w = (torch.randn(rows, cols, device="cuda") * 0.02).bfloat16()
        stored = device.encode(w, "BF16")
        out = torch.empty_like(w)
        exact = torch.equal(device.decode(*stored, "BF16", out).view(torch.int16), w.view(torch.int16))
        copies = [stored] + [
            tuple(t.clone() for t in stored) for _ in range(min(8, measure.copies(stored[0].numel())) - 1)
        ]
        calls = [(lambda s=s, out=out: device.decode(*s, "BF16", out)) for s in copies]
        seconds = measure.seconds(calls)[0]
        bpw = 8 * sum(t.numel() * t.element_size() for t in stored) / w.numel()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(3):
            device.encode(w, "BF16")
        end.record()
        end.synchronize()
        encode = begin.elapsed_time(end) / 3 * 1e-3
        gigabytes = w.numel() * 2e-9
        print(
            f"{rows}x{cols} bit-exact {exact} bpw {bpw:.3f} decode {seconds * 1e6:.1f} us "
            f"{gigabytes / seconds:.0f} GB/s encode {gigabytes / encode:.0f} GB/s",
            flush=True,
        )
        if cols == 4096 and rows == 128256:
            for n in (1, 16, 2048):
                ids = torch.randint(0, rows, (n,), device="cuda")
                calls = [
                    (lambda s=s, ids=ids: torch.ops.tersor.huffman_decode_rows(*s, "BF16", [rows, cols], ids))
                    for s in copies
                ]
                print(f"  {n} rows: {measure.seconds(calls)[0] * 1e6:.1f} us", ops.library.ns, flush=True)


if __name__ == "__main__":
    main()
