#!/usr/bin/env python3
"""Forward and backward of one routed-expert layer (dispatch, SwiGLU experts, combine) in PyTorch with torch._grouped_mm,
eager and compiled, bf16, random data, natural routing from random logits. Prints one RESULT line per shape and mode.
Model FLOPs: 6 T K H I forward and twice that backward; router and permutation are not counted."""
import argparse

import torch
import torch.nn.functional as F

import measure

# name: tokens T, width H, expert width I, experts E, chosen K
SHAPES = {
    "mixtral": (8192, 4096, 14336, 8, 2),
    "qwen3-30b": (32768, 2048, 768, 128, 8),
    "qwen3-30b-8k": (8192, 2048, 768, 128, 8),
    "qwen3-30b-1k": (1024, 2048, 768, 128, 8),
    "olmoe": (16384, 2048, 1024, 64, 8),
    "dsv2-lite": (16384, 2048, 1408, 64, 6),
    "sonic-1536": (24576, 1536, 256, 128, 8),
    "sonic-4096": (32768, 4096, 1024, 128, 8),
}


def route(x_TH, w_router_EH, top_k):
    scores_TE = torch.softmax((x_TH @ w_router_EH.t()).float(), -1)
    weights_TK, chosen_TK = torch.topk(scores_TE, top_k, -1)
    return weights_TK / weights_TK.sum(-1, keepdim=True), chosen_TK


def experts(x_TH, weights_TK, chosen_TK, w_up_EJH, w_down_EHI):
    """Rows sorted by expert, gate and up in one product (J = 2I), weighted sum back to tokens."""
    num_experts, top_k = w_up_EJH.shape[0], chosen_TK.shape[1]
    expert_R = chosen_TK.reshape(-1)
    order_R = torch.argsort(expert_R, stable=True)
    token_R = order_R // top_k
    rows_E = torch.zeros(num_experts, device=x_TH.device, dtype=torch.long)
    ends_E = rows_E.scatter_add(0, expert_R, torch.ones_like(expert_R)).cumsum(0).to(torch.int32)
    gate_RI, up_RI = torch._grouped_mm(x_TH[token_R], w_up_EJH.transpose(1, 2), ends_E).chunk(2, -1)
    y_RH = torch._grouped_mm(F.silu(gate_RI) * up_RI, w_down_EHI.transpose(1, 2), ends_E)
    y_RH = y_RH * weights_TK.reshape(-1)[order_R].unsqueeze(1).to(x_TH.dtype)
    return torch.zeros_like(x_TH).index_add(0, token_R, y_RH)


def run_shape(name, sizes, mode, args):
    num_tokens, width, expert_width, num_experts, top_k = sizes
    make = dict(device=args.device, dtype=torch.bfloat16)
    x = torch.randn(num_tokens, width, **make).requires_grad_()
    w_router = (torch.randn(num_experts, width, **make) * 0.02).requires_grad_()
    w_up = (torch.randn(num_experts, 2 * expert_width, width, **make) * 0.02).requires_grad_()
    w_down = (torch.randn(num_experts, width, expert_width, **make) * 0.02).requires_grad_()
    dy = torch.randn(num_tokens, width, **make)
    if args.routing == "given":
        with torch.no_grad():
            weights, chosen = route(x, w_router, top_k)
        weights.requires_grad_()
        layer = lambda: experts(x, weights, chosen, w_up, w_down)
        inputs = (x, weights, w_up, w_down)
    else:
        layer = lambda: experts(x, *route(x, w_router, top_k), w_up, w_down)
        inputs = (x, w_router, w_up, w_down)
    call = torch.compile(layer, dynamic=False) if mode == "compiled" else layer
    both = lambda: torch.autograd.grad(call(), inputs, dy)
    forward_ms = measure.median_ms(call, args.device)  # records for the backward pass
    both_ms = measure.median_ms(both, args.device)
    memory = measure.PeakMemory(args.device)
    both()
    measure.synchronize(args.device)
    flops = 6 * num_tokens * top_k * width * expert_width
    measure.print_result(
        args.device, peer="torch._grouped_mm", case="moe_layer", shape=name, mode=mode, routing=args.routing,
        tokens=num_tokens, sizes=dict(H=width, I=expert_width, E=num_experts, K=top_k),
        forward_ms=round(forward_ms, 4), forward_tflops=round(flops / forward_ms / 1e9, 2),
        forward_backward_ms=round(both_ms, 4), forward_backward_tflops=round(3 * flops / both_ms / 1e9, 2),
        extra_peak_bytes=memory.bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--mode", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--routing", choices=["given", "inside"], default="given",
                        help="whether router and top-k are part of what is timed")
    parser.add_argument("--tokens", type=int, help="instead of the shape's")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(1)
    for name in args.shape:
        for mode in args.mode:
            try:
                run_shape(name, (args.tokens or SHAPES[name][0], *SHAPES[name][1:]), mode, args)
            except RuntimeError as error:  # out of memory, no such kernel: the other shapes still count
                measure.print_result(args.device, case="moe_layer", shape=name, mode=mode, error=str(error)[:200])
            torch.compiler.reset()


if __name__ == "__main__":
    main()
