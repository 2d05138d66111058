"""Correctness of the `fast` layout on this GPU, then every build of its product against cuBLAS.

    PYTHONPATH=src python bench/sweep_window.py [--check-only] [--out FILE]

Used to choose the builds in tersor.kernels.window.linear; `tersor bench` measures the chosen ones.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace

import numpy as np
import torch

from tersor.kernels import measure
from tersor.kernels.window import device as window
from tersor.kernels.window import reference
from tersor.kernels.window.linear import Variant

SHAPES = [
    (4096, 4096),
    (6144, 4096),
    (14336, 4096),
    (28672, 4096),
    (4096, 14336),
    (8192, 8192),
    (57344, 8192),
    (8192, 28672),
]
SHAPES_OF_BLOCK = [(16, 2, 1), (20, 2, 1), (8, 2, 2), (10, 2, 2), (8, 2, 3), (4, 2, 5), (14, 2, 1), (6, 2, 2)]
VARIANTS = {
    1: [Variant(1, *b) for b in SHAPES_OF_BLOCK],
    8: [Variant(8, *b) for b in SHAPES_OF_BLOCK]
    + [Variant(8, 16, 2, 1, 4), Variant(8, 8, 2, 2, 2), Variant(8, 20, 2, 1, 4, 1)],
    16: [
        Variant(16, 16, 2, 1, 2), Variant(16, 8, 2, 2, 1), Variant(16, 20, 2, 1, 2, 1), Variant(16, 10, 2, 2, 1, 1),
        Variant(16, 16, 2, 1, 3, 1),
    ],
    32: [
        Variant(32, 12, 2, 1, 1), Variant(32, 16, 2, 1, 1, 1), Variant(32, 14, 2, 1, 1, 1),
        Variant(32, 12, 3, 1, 1, 1),
    ],
}  # fmt: skip
CHECKED = [Variant(1, 8, 2, 2), Variant(4, 8, 2, 2), Variant(8, 8, 2, 2), Variant(8, 12, 2, 1, 4), Variant(16, 12, 2, 1, 2),
           Variant(16, 8, 2, 2), Variant(32, 12, 2, 1, 1), Variant(32, 16, 2, 1, 1, 1)]  # fmt: skip


def matrices(rows: int, cols: int) -> dict[str, torch.Tensor]:
    """Kind and hostile weights."""
    g = torch.randn(rows, cols, device="cuda")
    spread = torch.exp2(torch.randint(-20, 20, (rows, cols), device="cuda").float())
    return {
        "gaussian": (g * 0.02).bfloat16(),
        "heavy-tailed": (g / torch.rand(rows, cols, device="cuda").clamp_min(1e-3)).bfloat16(),
        "row-scaled": (g * torch.exp2(torch.randint(-40, 40, (rows, 1), device="cuda").float())).bfloat16(),
        "all-exception": (g * spread).bfloat16(),
        "bits": torch.randint(-32768, 32768, (rows, cols), device="cuda", dtype=torch.int16).view(
            torch.bfloat16
        ),
    }


def error(y: torch.Tensor, ref: torch.Tensor) -> float:
    """Relative error, row scales divided out."""
    scale = ref.abs().amax(0, keepdim=True).clamp_min(1e-300)
    return float((((y.double() - ref) / scale).norm() / (ref / scale).norm()).item())


def check() -> int:
    bad = 0
    for rows, cols in [
        (16, 64),
        (1, 64),
        (33, 100),
        (100, 576),
        (250, 2048),
        (130, 4104),
        (4096, 4096),
        (520, 14336),
    ]:
        for name, w in matrices(rows, cols).items():
            p = window.pack(w)
            same = True
            if rows * cols < 2_000_000:
                r = reference.pack(w.view(torch.int16).cpu().numpy().view(np.uint16))
                for field in ("blocks", "places", "records"):
                    a, b = getattr(p, field).cpu().numpy(), getattr(r, field)
                    if a.tobytes() != b.tobytes():
                        same = False
                        print("PACK differs", rows, cols, name, field, a.shape, b.shape, flush=True)
            exact = torch.equal(window.decode(p).view(torch.int16), w.view(torch.int16))
            if name == "bits":
                bad += not (same and exact)
                if not exact:
                    print("DECODE differs", rows, cols, name, flush=True)
                continue
            bias = torch.randn(rows, device="cuda", dtype=torch.bfloat16)
            x = torch.randn(32, cols, device="cuda", dtype=torch.bfloat16)
            first = None
            for v in CHECKED:
                if v.slice_spans and v.shared > 227 * 1024:
                    continue
                for m in {m for m in (1, 3, v.tokens - 3, v.tokens) if 0 < m <= v.tokens}:
                    ref = x[:m].double() @ w.double().T
                    torch.cuda.empty_cache()
                    y = window.linear(x[:m], p, None, v)
                    window.linear(x[:m], p, bias, v)
                    if first is None:
                        first = y[0].clone()
                    e, eb = error(y, ref), error(torch.nn.functional.linear(x[:m], w), ref)
                    ok = e <= 1.2 * eb + 1e-4 and torch.equal(y[0], first)
                    if not ok or not exact or not same:
                        bad += 1
                        print(
                            f"BAD {rows}x{cols} {name} {v} m={m} err {e:.2e} cublas {eb:.2e} invariant "
                            f"{torch.equal(y[0], first)} decode {exact} bpw {p.bits_per_weight:.2f}",
                            flush=True,
                        )
        print("checked", rows, cols, "bad so far", bad, flush=True)
    return bad


def sweep(out: str | None) -> None:
    measure.warm_up(torch.device("cuda"))
    results = []
    best: dict[int, list[float]] = {}
    for rows, cols in SHAPES:
        w = (torch.randn(rows, cols, device="cuda") * 0.02).bfloat16()
        p = window.pack(w)
        n = measure.copies(int(rows * cols * 1.42))
        packs = [p] + [
            replace(
                p,
                **{f: getattr(p, f).clone() for f in ("blocks", "places", "records")},
            )
            for _ in range(n - 1)
        ]
        plain = [w] + [w.clone() for _ in range(measure.copies(rows * cols * 2) - 1)]
        for m, variants in VARIANTS.items():
            x = torch.randn(m, cols, device="cuda", dtype=torch.bfloat16)
            usable = [v for v in variants if v.shared <= 227 * 1024]
            calls = [[(lambda a=a: torch.nn.functional.linear(x, a)) for a in plain]]
            calls += [[(lambda q=q, v=v: window.linear(x, q, None, v)) for q in packs] for v in usable]
            t = measure.seconds(*calls, replays=11)
            row = {
                f"{v.consumers}/{v.stages}/{v.blocks_per_sm}/{v.slice_spans}": t[0] / s
                for v, s in zip(usable, t[1:], strict=True)
            }
            results.append(
                {
                    "shape": (rows, cols),
                    "m": m,
                    "cublas_us": t[0] * 1e6,
                    "bpw": p.bits_per_weight,
                    "ratio": row,
                }
            )
            best.setdefault(m, []).append(max(row.values()))
            print(
                f"{rows}x{cols} m={m} cublas {t[0] * 1e6:.1f} us |",
                " ".join(f"{k}:{r:.2f}" for k, r in row.items()),
                flush=True,
            )
        s = measure.seconds([(lambda q=q: window.decode(q)) for q in packs[:8]])[0]
        print(
            f"{rows}x{cols} bpw {p.bits_per_weight:.3f} decode {rows * cols * 2e-9 / s:.0f} GB/s bf16",
            flush=True,
        )
        del packs, plain, w
        torch.cuda.empty_cache()
    for m, values in best.items():
        print(
            f"m={m} geometric mean of the best {math.exp(sum(map(math.log, values)) / len(values)):.3f} min {min(values):.3f}"
        )
    if out:
        with open(out, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    if check():
        raise SystemExit("wrong results: not timed")
    if not args.check_only:
        sweep(args.out)
