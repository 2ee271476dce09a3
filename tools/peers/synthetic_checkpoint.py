#!/usr/bin/env python3
"""Writes a model folder in the Hugging Face layout with random bf16 weights, to measure import, export and decoding with.

usage: synthetic_checkpoint.py OUT [--layers N] [--experts N] [--vocab N] [--shard-gib X]   (no packages needed)
The shape is that of Qwen3-30B-A3B with 32 experts a layer and a small vocabulary: about 0.34 GB a layer. The tokenizer
has a token for each byte, and made-up words for all others.
"""
import argparse
import json
import pathlib
import random
import struct

DIM, HEADS, KV_HEADS, HEAD_DIM, WIDTH = 2048, 32, 4, 128, 768


def tensors(layers, experts, vocab):
    yield "model.embed_tokens.weight", (vocab, DIM)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", (DIM,)
        for name, shape in (("q_proj", (HEADS * HEAD_DIM, DIM)), ("k_proj", (KV_HEADS * HEAD_DIM, DIM)),
                            ("v_proj", (KV_HEADS * HEAD_DIM, DIM)), ("o_proj", (DIM, HEADS * HEAD_DIM)),
                            ("q_norm", (HEAD_DIM,)), ("k_norm", (HEAD_DIM,))):
            yield f"{prefix}self_attn.{name}.weight", shape
        yield f"{prefix}mlp.gate.weight", (experts, DIM)
        for expert in range(experts):
            for name, shape in (("gate_proj", (WIDTH, DIM)), ("up_proj", (WIDTH, DIM)), ("down_proj", (DIM, WIDTH))):
                yield f"{prefix}mlp.experts.{expert}.{name}.weight", shape
    yield "model.norm.weight", (DIM,)
    yield "lm_head.weight", (vocab, DIM)


def random_weights(count):
    """bf16 of either sign with magnitudes of 1/64 to 1/32: any sign and fraction under one exponent."""
    # Through one integer: masks of all values at a time.
    bits = int.from_bytes(random.Random(1).randbytes(2 * count), "little")
    sign_and_fraction = int.from_bytes(struct.pack("<H", 0x807F) * count, "little")
    exponent = int.from_bytes(struct.pack("<H", (127 - 6) << 7) * count, "little")
    return (bits & sign_and_fraction | exponent).to_bytes(2 * count, "little")


def write_shard(path, shapes, noise):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (rows, *columns) in shapes.items():
        begin, end = end, end + 2 * rows * (columns[0] if columns else 1)
        header[name] = {"dtype": "BF16", "shape": [rows, *columns], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        begin = 0
        for entry in list(header.values())[1:]:
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            begin = (begin + 2 * 7919) % (len(noise) - size)  # each tensor is another part of the same noise
            file.write(noise[begin:begin + size])


def tokenizer(vocab):
    """Byte-level BPE without merges; ids from 256 on are words that no text is split into."""
    shown = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [byte for byte in range(256) if byte not in shown]
    words = {chr(byte): byte for byte in shown}
    words.update({chr(256 + i): byte for i, byte in enumerate(others)})
    words.update({f"Ġw{i}": i for i in range(256, vocab)})
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": step, "post_processor": None, "decoder": step,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": words,
                      "merges": []}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--shard-gib", type=float, default=1.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    config = dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", dtype="bfloat16", hidden_act="silu",
                  hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
                  num_hidden_layers=args.layers, intermediate_size=6144, moe_intermediate_size=WIDTH,
                  num_experts=args.experts, num_experts_per_tok=8, norm_topk_prob=True, decoder_sparse_step=1,
                  mlp_only_layers=[], vocab_size=args.vocab, rms_norm_eps=1e-6, max_position_embeddings=4096,
                  tie_word_embeddings=False, rope_theta=1e6)
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    (args.out / "tokenizer.json").write_text(json.dumps(tokenizer(args.vocab), ensure_ascii=False))
    noise = random_weights((args.vocab + 4096) * DIM)
    shards, size = [{}], 0
    for name, shape in tensors(args.layers, args.experts, args.vocab):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        if size + 2 * count > args.shard_gib * 2**30:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * count
    index = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(args.out / file, shard, noise)
        index.update({name: file for name in shard})
    (args.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    print(args.out, f"{sum(f.stat().st_size for f in args.out.iterdir()) / 1e9:.2f} GB in {len(shards)} files")


if __name__ == "__main__":
    main()
