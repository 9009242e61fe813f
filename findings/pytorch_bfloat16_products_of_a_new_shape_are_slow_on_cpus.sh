#!/usr/bin/env bash
# Products of matrices in bfloat16 on a CPU that multiplies it natively (AVX512-BF16 or AMX), when the
# number of rows differs from call to call, as the number of atoms or tokens in packed batches does.
#
# One would guess: a product with 701 rows takes as long as one with 700, whether or not there was one
# with 701 before. In float32 it does.
# What happens: the first product of each shape takes several times as long as the later ones, since
# code is generated for it (oneDNN, which keeps it for later calls). Training on packed batches in
# bfloat16 can thus be slower than in float32. Rounding the rows up to a multiple of 64 mends it.
# Seen with torch 2.13.0. Source: this run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet numpy==2.4.6 torch==2.13.0
cd "$folder"
OMP_NUM_THREADS=1 env/bin/python - <<'PYTHON'
from statistics import median
from time import process_time

import torch

native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
print("torch", torch.__version__, "native bfloat16:", native)
assert native, "this machine does not multiply bfloat16 natively: nothing to see"


def milliseconds(rows, weight):
    x = torch.ones(rows, 256, dtype=weight.dtype)
    start = process_time()
    torch.nn.functional.linear(x, weight)
    return 1000 * (process_time() - start)


ratios = {}
for dtype in (torch.float32, torch.bfloat16):
    weight = torch.ones(512, 256, dtype=dtype)
    for _ in range(20):
        milliseconds(600, weight)
    new = [milliseconds(rows, weight) for rows in range(700, 764)]
    again = [milliseconds(rows, weight) for rows in range(700, 764)]
    ratios[dtype] = median(new) / median(again)
    print(f"{dtype}: first {median(new):.2f} ms, again {median(again):.2f} ms, ratio {ratios[dtype]:.1f}")
assert ratios[torch.bfloat16] > 3 and ratios[torch.float32] < 2
PYTHON
