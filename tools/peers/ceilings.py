#!/usr/bin/env python3
"""What one NVIDIA GPU reaches for the sizes of MoE training: copies and row gathers, dense and grouped products (bf16,
fp8, int8), causal attention. Random data, medians of CUDA events, one RESULT line each; a product that this version
or card lacks gives a line with "error" in place of its time."""
import argparse

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import measure

BF16, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
DENSE = [(8192, 8192, 8192), (16384, 14336, 4096), (16384, 4096, 14336), (16384, 6144, 4096), (16384, 2048, 2048),
         (16384, 32000, 4096)]  # M, N, K
GROUPED = {"mixtral": (4096, 14336, 8, 2), "olmoe": (2048, 1024, 64, 8), "qwen3-30b": (2048, 768, 128, 8),
           "dsv2-lite": (2048, 1408, 64, 6)}  # H, I, E, K
TOKENS = 16384
ATTENTION = [(4, 4096, 32, 8, 128), (4, 4096, 16, 16, 128), (1, 32768, 32, 8, 128)]  # B, S, heads, kv heads, width


def report(case, call, operations=None, num_bytes=None):
    try:
        ms = measure.median_ms(call, "cuda")
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        measure.print_result("cuda", case=case, error=str(error).splitlines()[0])
        return
    figures = dict(ms=round(ms, 4))
    if operations:
        figures["tops"] = round(operations / ms / 1e9, 1)
    if num_bytes:
        figures["gb_per_second"] = round(num_bytes / ms / 1e6, 1)
    measure.print_result("cuda", case=case, **figures)


def random(*dims, dtype=BF16):
    if dtype == INT8:
        return torch.randint(-127, 128, dims, device="cuda", dtype=INT8)
    return torch.randn(*dims, device="cuda", dtype=BF16).to(dtype)


def ones(*dims):
    return torch.ones(dims, device="cuda")


def memory():
    size = 1 << 31
    source, target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    report("copy 2 GiB, read + write", lambda: target.copy_(source), num_bytes=2 * size)
    del source, target
    for name, (width, _, _, top_k) in GROUPED.items():
        x, index = random(TOKENS, width), torch.randint(0, TOKENS, (TOKENS * top_k,), device="cuda")
        report(f"gather rows {name}", lambda: x.index_select(0, index), num_bytes=2 * len(index) * width * 2)


def dense():
    for m, n, k in DENSE:
        label, operations = f"{m}x{n}x{k}", 2 * m * n * k
        x, w = random(m, k), random(n, k)
        report(f"dense bf16 {label}", lambda: x @ w.t(), operations)
        x8, w8 = x.to(FP8), w.to(FP8)
        for kind, scale_x, scale_w in [("per tensor", ones(), ones()), ("per row", ones(m, 1), ones(1, n))]:
            report(f"dense fp8 {kind} {label}",
                   lambda: torch._scaled_mm(x8, w8.t(), scale_x, scale_w, out_dtype=BF16, use_fast_accum=True),
                   operations)
        xi, wi = random(m, k, dtype=INT8), random(n, k, dtype=INT8)
        report(f"dense int8 {label}", lambda: torch._int_mm(xi, wi.t()), operations)


def grouped():
    for name, (width, expert_width, num_experts, top_k) in GROUPED.items():
        rows, double = TOKENS * top_k, 2 * expert_width
        ends = torch.arange(1, num_experts + 1, device="cuda", dtype=torch.int32) * (rows // num_experts)
        x, g, dy = random(rows, width), random(rows, expert_width), random(rows, double)
        w_up, w_down = random(num_experts, double, width), random(num_experts, width, expert_width)
        up, down = 2 * rows * width * double, 2 * rows * width * expert_width
        report(f"grouped bf16 {name} up", lambda: torch._grouped_mm(x, w_up.transpose(1, 2), ends), up)
        report(f"grouped bf16 {name} down", lambda: torch._grouped_mm(g, w_down.transpose(1, 2), ends), down)
        report(f"grouped bf16 {name} up, input gradient", lambda: torch._grouped_mm(dy, w_up, ends), up)
        report(f"grouped bf16 {name} up, weight gradient", lambda: torch._grouped_mm(dy.t(), x, ends), up)
        x8, w8 = x.to(FP8), w_up.to(FP8)
        scale_x, scale_w = ones(rows), ones(num_experts, double)
        report(f"grouped fp8 per row {name} up",
               lambda: torch._scaled_grouped_mm(x8, w8.transpose(1, 2), scale_x, scale_w, ends, out_dtype=BF16,
                                                use_fast_accum=True), up)


def attention():
    for batch, sequence, heads, kv_heads, width in ATTENTION:
        q = random(batch, heads, sequence, width).requires_grad_()
        k, v = (random(batch, kv_heads, sequence, width).requires_grad_() for _ in range(2))
        operations = 2 * batch * heads * sequence * sequence * width  # the causal half
        for backend in [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]:
            def forward():
                with sdpa_kernel([backend]):
                    return torch.nn.functional.scaled_dot_product_attention(
                        q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
            label = f"attention {backend.name} S={sequence} heads {heads}/{kv_heads}"
            report(f"{label} forward", forward, operations)
            try:
                out = forward()
            except RuntimeError:
                continue  # the forward line has named the error
            dout = torch.randn_like(out)
            report(f"{label} backward",
                   lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), 2.5 * operations)


def main():
    groups = {"memory": memory, "dense": dense, "grouped": grouped, "attention": attention}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=groups, default=list(groups))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device; these are ceilings of a GPU")
    torch.manual_seed(1)
    for name in args.only:
        groups[name]()


if __name__ == "__main__":
    main()
