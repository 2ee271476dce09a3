#!/usr/bin/env python3
"""Writes a model folder in the Hugging Face layout with random bf16 weights, to measure import and export with.

usage: synthetic_checkpoint.py OUT [--layers N] [--shard-gib X]      (about 0.34 GB a layer; needs torch, safetensors)
The shape is that of Qwen3-30B-A3B with 32 experts a layer and a small vocabulary.
"""
import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

DIM, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, WIDTH, VOCAB = 2048, 32, 4, 128, 32, 768, 32000


def tensors(layers):
    yield "model.embed_tokens.weight", (VOCAB, DIM)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", (DIM,)
        for name, shape in (("q_proj", (HEADS * HEAD_DIM, DIM)), ("k_proj", (KV_HEADS * HEAD_DIM, DIM)),
                            ("v_proj", (KV_HEADS * HEAD_DIM, DIM)), ("o_proj", (DIM, HEADS * HEAD_DIM)),
                            ("q_norm", (HEAD_DIM,)), ("k_norm", (HEAD_DIM,))):
            yield f"{prefix}self_attn.{name}.weight", shape
        yield f"{prefix}mlp.gate.weight", (EXPERTS, DIM)
        for expert in range(EXPERTS):
            for name, shape in (("gate_proj", (WIDTH, DIM)), ("up_proj", (WIDTH, DIM)), ("down_proj", (DIM, WIDTH))):
                yield f"{prefix}mlp.experts.{expert}.{name}.weight", shape
    yield "model.norm.weight", (DIM,)
    yield "lm_head.weight", (VOCAB, DIM)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--shard-gib", type=float, default=1.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    config = dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", dtype="bfloat16", hidden_act="silu",
                  hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
                  num_hidden_layers=args.layers, intermediate_size=6144, moe_intermediate_size=WIDTH,
                  num_experts=EXPERTS, num_experts_per_tok=8, norm_topk_prob=True, decoder_sparse_step=1,
                  mlp_only_layers=[], vocab_size=VOCAB, rms_norm_eps=1e-6, max_position_embeddings=4096,
                  tie_word_embeddings=False, rope_theta=1e6)
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    noise = (torch.randn(VOCAB * DIM) * 0.02).to(torch.bfloat16)
    shards, size = [{}], 0
    for name, shape in tensors(args.layers):
        count = torch.Size(shape).numel()
        if size + 2 * count > args.shard_gib * 2**30:
            shards.append({})
            size = 0
        shards[-1][name] = noise[:count].view(shape).clone()
        size += 2 * count
    index = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, args.out / file, metadata={"format": "pt"})
        index.update({name: file for name in shard})
    (args.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    print(args.out, f"{sum(f.stat().st_size for f in args.out.iterdir()) / 1e9:.2f} GB in {len(shards)} files")


if __name__ == "__main__":
    main()
