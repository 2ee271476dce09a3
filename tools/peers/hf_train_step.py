#!/usr/bin/env python3
"""One training step in HF Transformers with the sizes of configs/bench/NAME.toml: forward, loss, backward, clipping and
fused AdamW. Weights, gradients and moments have one dtype, there is no master copy. Every step sees other random tokens.
Prints the median over the steps after warm-up as one RESULT line."""
import argparse
import statistics
import time

import torch
import transformers

import measure


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", required=True, choices=measure.shape_names())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="default: as the config says")
    parser.add_argument("--experts-impl", choices=["eager", "grouped_mm", "batched_mm"], default="grouped_mm")
    parser.add_argument("--attention", default="sdpa", help="attention implementation of Transformers")
    parser.add_argument("--cudnn", action="store_true", help="leave only cuDNN's kernel to sdpa")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--layers", type=int, help="instead of the config's, as are --vocab, --sequence and --batch")
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--sequence", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--clip", type=float, help="largest gradient norm, 0: no clipping; default: the config's")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser.parse_args()


def chosen_shape(args):
    """The config with what the command line says instead."""
    shape = measure.load_shape(args.shape)
    for section, name in [("model", "layers"), ("model", "vocab"), ("train", "sequence"), ("train", "batch")]:
        shape[section][name] = getattr(args, name) or shape[section][name]
    shape["train"]["precision"] = args.dtype or shape["train"]["precision"]
    if args.clip is not None:
        shape["optimizer"]["grad_clip"] = args.clip
    return shape


def build_model(shape, args):
    """The class of Transformers whose attention normalises queries and keys as the config says."""
    model, moe = shape["model"], shape["model"]["moe"]
    sizes = dict(
        vocab_size=model["vocab"], hidden_size=model["dim"], num_hidden_layers=model["layers"],
        num_attention_heads=model["heads"], num_key_value_heads=model["kv_heads"], head_dim=model["head_dim"],
        num_experts_per_tok=moe["top_k"], rms_norm_eps=model["norm_eps"], tie_word_embeddings=model["tied_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": model["rope_theta"]},
        max_position_embeddings=shape["train"]["sequence"], use_cache=False, output_router_logits=False,
        pad_token_id=None, bos_token_id=None, eos_token_id=None)
    if model["qk_norm"] == "none":
        if not moe["normalize_weights"]:
            raise SystemExit("Mixtral's router always normalises the weights; set model.moe.normalize_weights = true")
        config = transformers.MixtralConfig(
            **sizes, num_local_experts=moe["experts"], intermediate_size=moe["expert_dim"])
        kind = transformers.MixtralForCausalLM
    elif model["qk_norm"] == "full":
        config = transformers.OlmoeConfig(
            **sizes, num_experts=moe["experts"], intermediate_size=moe["expert_dim"],
            norm_topk_prob=moe["normalize_weights"])
        kind = transformers.OlmoeForCausalLM
    else:
        config = transformers.Qwen3MoeConfig(
            **sizes, num_experts=moe["experts"], moe_intermediate_size=moe["expert_dim"],
            norm_topk_prob=moe["normalize_weights"])
        kind = transformers.Qwen3MoeForCausalLM
    config._attn_implementation = args.attention
    torch.set_default_dtype({"fp32": torch.float32, "bf16": torch.bfloat16}[shape["train"]["precision"]])
    with torch.device(args.device):
        built = kind(config)
    torch.set_default_dtype(torch.float32)
    built.set_experts_implementation(args.experts_impl)
    return built.train()


def joules(device):
    """Reading of the card's energy counter, None without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device()) if device == "cuda" else None
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3 if card else None
    except Exception:  # no package, no driver, no counter: the figure is left out
        return None


def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.cudnn:
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(False)
    shape = chosen_shape(args)
    batch, sequence, clip = shape["train"]["batch"], shape["train"]["sequence"], shape["optimizer"]["grad_clip"]
    torch.manual_seed(1)
    memory = measure.PeakMemory(args.device)
    model = build_model(shape, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape["optimizer"]["lr"], fused=True)
    forward = torch.compile(model) if args.compile else model
    seconds, energy_start, measured_from = [], None, None
    for step in range(args.warmup + args.steps):
        tokens = torch.randint(shape["model"]["vocab"], (batch, sequence), device=args.device)
        measure.synchronize(args.device)
        if step == args.warmup:
            energy_start, measured_from = joules(args.device), time.time()
        start = time.perf_counter()
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        if clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        measure.synchronize(args.device)
        seconds.append(time.perf_counter() - start)
    measured_until = time.time()
    energy_end = joules(args.device)
    step_seconds, num_tokens = statistics.median(seconds[args.warmup:]), batch * sequence
    result = dict(
        peer="transformers", shape=args.shape, dtype=shape["train"]["precision"], experts=args.experts_impl,
        compiled=args.compile, tokens_per_second=round(num_tokens / step_seconds, 1),
        model_tflops=round(measure.step_flops(shape) / step_seconds / 1e12, 4),
        step_ms=round(1e3 * step_seconds, 2), fastest_step_ms=round(1e3 * min(seconds[args.warmup:]), 2),
        peak_memory_bytes=memory.bytes(), parameters=sum(p.numel() for p in model.parameters()),
        layers=shape["model"]["layers"], vocab=shape["model"]["vocab"], sequence=sequence, batch=batch, clip=clip,
        steps=args.steps, loss=round(loss.item(), 4), measured_from=measured_from, measured_until=measured_until)
    if energy_start is not None and energy_end is not None:
        result["joules_per_token"] = (energy_end - energy_start) / (args.steps * num_tokens)
    measure.print_result(args.device, **result, transformers=transformers.__version__, attention=args.attention)


if __name__ == "__main__":
    main()
