#!/usr/bin/env python3
"""Reads an exported quantised run with the package compressed-tensors and compares every value with the run's own.

usage: compressed_tensors_check.py RUN FOLDER [--no-transformers]
       compressed_tensors_check.py --make FAMILY FOLDER     (llama, mixtral, qwen2_moe, qwen3_moe or olmoe)
RUN is a folder that `moebius quantize` wrote, FOLDER what `moebius convert to-hf RUN FOLDER` made of it. The second form
writes a small random model of a family, to be imported (`moebius convert hf`), quantised and exported.

1. compressed-tensors decompresses each weight; the run's checkpoint gives code x scale of the same weight. Both must
   be equal bit for bit, and every integer weight of the run must have been found.
2. Transformers loads the folder, decompressing while it loads, and each weight must be equal again; its logits must be
   those of the same class holding the run's values. Versions whose experts are one tensor (5 and later) cannot.

Needs torch, safetensors, compressed-tensors; for 2 transformers (4.x for models with experts).
"""
import argparse
import json
import pathlib
import re
import sys

import torch
from safetensors.torch import load_file

PARTS = {"gate_proj": ("gate_up", 0), "w1": ("gate_up", 0), "up_proj": ("gate_up", 1), "w3": ("gate_up", 1),
         "down_proj": ("down", None), "w2": ("down", None)}


class Run:
    """The weights of a quantised run, by the names that Hugging Face models have for them."""

    def __init__(self, folder):
        checkpoint = max((folder / "checkpoints").glob("step-*")) if (folder / "checkpoints").exists() else folder
        self.manifest = json.loads((checkpoint / "manifest.json").read_text())
        said = self.manifest["state"]["quantisation"]
        self.scheme, self.group = said["scheme"], said.get("group", 0)
        self.tensors = {}
        for shard in self.manifest["shards"]:
            self.tensors.update(load_file(checkpoint / shard["file"]))
        self.integers = {name[:-len(".scale")] for name in self.tensors if name.endswith(".scale")}

    def values(self, name):
        """fp32: code x scale of each row, or of each group of inputs of a row."""
        codes, scales = self.tensors[name], self.tensors[name + ".scale"]
        if self.scheme.startswith("int4"):
            codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).to(torch.int32) - 8
            factors = scales.repeat_interleave(self.group, -1)[..., :codes.shape[-1]]
            return codes.float() * factors
        return codes.float() * scales.unsqueeze(-1)

    def place(self, module, rows_of):
        """(our parameter, function that takes the module's rows out of it)"""
        layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", module).groups()
        prefix = f"layers.{layer}."
        last = rest.rsplit(".", 1)[-1]
        if rest.startswith("self_attn."):
            if last == "o_proj":
                return prefix + "attention.out", lambda w: w
            before = {"q_proj": [], "k_proj": ["q_proj"], "v_proj": ["q_proj", "k_proj"]}[last]
            begin = sum(rows_of(module[:-len(last)] + other) for other in before)
            return prefix + "attention.qkv", lambda w: w[begin:begin + rows_of(module)]
        part, offset = PARTS[last]
        rows = (lambda w: w) if offset is None else (lambda w: w[offset::2])
        expert = re.search(r"\.experts\.(\d+)\.", rest)
        if expert:
            return prefix + "moe." + part, lambda w: rows(w[int(expert.group(1))])
        return prefix + ("moe.shared." if "shared_expert" in rest else "ffn.") + part, rows


def decompressed(folder, config):
    """(module, fp32 or other float weight) by the package."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    quantisation = QuantizationConfig.model_validate(config["quantization_config"])
    scheme = quantisation.config_groups["group_0"]
    kind = BaseCompressor.get_value_from_registry(quantisation.format)
    stored = {}
    for file in folder.glob("*.safetensors"):
        stored.update(load_file(file))
    modules = [name[:-len(".weight_scale")] for name in stored if name.endswith(".weight_scale")]
    if hasattr(kind, "decompress_weight"):  # up to 0.12
        compressor = kind(config=quantisation)
        for module, data in compressor.decompress(folder, {module: scheme for module in modules}):
            yield module, data["weight"]
        return
    for module in modules:
        own = {name[len(module) + 1:]: value for name, value in stored.items() if name.startswith(module + ".")}
        yield module, kind.decompress(own, scheme)["weight"]


def compare(run, found, what):
    """found: module -> weight. Returns module -> our values."""
    rows_of = lambda module: found[module].shape[0]
    ours, seen, values = {}, set(), {}
    for module, weight in found.items():
        param, take = run.place(module, rows_of)
        if param not in values:
            values = {param: run.values(param)}  # one at a time
        want = take(values[param])
        if weight.shape != want.shape or not torch.equal(weight.float(), want.to(weight.dtype).float()):
            sys.exit(f"{what}: {module} differs from {param}: {weight.shape}, {want.shape}, largest difference "
                     f"{(weight.float() - want).abs().max() if weight.shape == want.shape else '-'}")
        ours[module] = want
        seen.add(param)
    missing = run.integers - seen
    if missing:
        sys.exit(f"{what}: no values of {', '.join(sorted(missing))}")
    return ours


def with_transformers(folder, run, ours):
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig
    print(f"transformers {transformers.__version__}")
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    present = {name for name, _ in plain.named_modules()}
    absent = [module for module in ours if module not in present]
    if absent:
        print(f"  this version has no module {absent[0]} (and {len(absent) - 1} others): its experts are one tensor, "
              "which compressed-tensors does not load; not compared")
        return
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=CompressedTensorsConfig(run_compressed=False), dtype=torch.float32).eval()
    modules = dict(loaded.named_modules())
    compare(run, {module: modules[module].weight.detach() for module in ours}, "Transformers")
    state = {}
    for file in folder.glob("*.safetensors"):
        state.update({name: value for name, value in load_file(file).items()
                      if not re.search(r"\.weight_(packed|scale|shape)$", name)})
    state.update({module + ".weight": value for module, value in ours.items()})
    left = plain.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    if left.unexpected_keys or [name for name in left.missing_keys if name != "lm_head.weight"]:
        sys.exit(f"Transformers: {left}")
    plain.tie_weights()
    tokens = torch.arange(1, 33).view(2, 16) % config.vocab_size
    with torch.no_grad():
        got, want = loaded(tokens).logits, plain(tokens).logits
    if "int8-w8a8" in run.scheme:
        # The package rounds activations per token too.
        error = float((got - want).norm() / want.norm())
        print(f"  logits with rounded activations: {error:.2e} from those without (relative, 2-norm)")
        if not 0 < error < 0.05:
            sys.exit("Transformers: that is not what rounding to 8 bits does")
    elif not torch.equal(got, want):
        sys.exit(f"Transformers: logits differ by {(got - want).abs().max()}")
    else:
        print("  logits are equal")


def make(family, folder):
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.manual_seed(1)
    sizes = dict(hidden_size=256, intermediate_size=384, moe_intermediate_size=128, shared_expert_intermediate_size=256,
                 num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=320,
                 max_position_embeddings=256, num_experts=4, num_local_experts=4, num_experts_per_tok=2,
                 initializer_range=0.05)
    config = AutoConfig.for_model(family)
    config.update({name: value for name, value in sizes.items() if hasattr(config, name)})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    print(f"{folder}: {config.architectures or family}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--make", action="store_true", help="RUN is a family, FOLDER is written")
    parser.add_argument("--no-transformers", dest="transformers", action="store_false")
    args = parser.parse_args()
    if args.make:
        return make(str(args.run), args.folder)
    import compressed_tensors
    config = json.loads((args.folder / "config.json").read_text())
    run = Run(args.run)
    print(f"{config['architectures'][0]}, {run.scheme}, {config['quantization_config']['format']}, "
          f"compressed-tensors {compressed_tensors.__version__}, torch {torch.__version__}")
    ours = compare(run, dict(decompressed(args.folder, config)), "compressed-tensors")
    print(f"  {len(ours)} weights, {sum(w.numel() for w in ours.values()):,} values: all equal")
    if args.transformers:
        with_transformers(args.folder, run, ours)


if __name__ == "__main__":
    main()
