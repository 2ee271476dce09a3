#!/usr/bin/env python3
"""What quantised weights, activations and caches cost a mixture-of-experts language model of books in perplexity:
docs/int8.md.

    experiments/int8_perplexity/run.py BOOKS VALID OUT [--device cuda|cpu] [--steps N] [--moebius PROGRAM]

BOOKS and VALID are folders of Markdown or text files; no file of VALID is trained on. Stages: `prepare` makes a
vocabulary (with the package `sentencepiece`; else bytes are the tokens) and corpora in OUT; `run` needs OUT alone. The
model is trained in bf16 on --device; then the whole of VALID is read by it in floats, with products rounded as the
integer kernels round them (on --device), by the integer kernels themselves (CPU), and through caches of keys and
values in its own dtype and in int8 (--device).
"""
import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import time

CONFIG = """[model]
layers = 6
dim = 256
heads = 4
kv_heads = 2
qk_norm = "head"
tied_embeddings = true
[model.moe]
experts = 16
top_k = 2
expert_dim = 256
shared_experts = 1
balance.bias_rate = 0.005
balance.aux_loss = 0.0
[data]
files = [{train}]
tokenizer = {tokenizer}
validation_file = {valid}
[train]
steps = {steps}
sequence = 512
batch = 32
precision = "bf16"
sample_tokens = 0
[optimizer]
lr = 2e-3
[schedule]
kind = "wsd"
warmup_steps = {warmup}
decay_fraction = 0.4
"""
NAIVE = ["quant.weight_scale=tensor", "quant.activation_scale=tensor", "quant.range=minmax"]


class Experiment:
    def __init__(self, arguments):
        self.arguments, self.out = arguments, arguments.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)

    def moebius(self, *words):
        command = [str(self.arguments.moebius), *map(str, words)]
        begin = time.time()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)}\nended with {result.returncode}:\n{result.stderr[-2000:]}")
        print(f"{time.time() - begin:6.1f} s  {shlex.join(command[1:])}"[:160], flush=True)
        return result.stdout

    def prepare(self):
        tokenizer, texts = "bytes", {}
        for name, folder in (("train", self.arguments.books), ("valid", self.arguments.valid)):
            files = sorted(path for path in folder.iterdir() if path.suffix in (".md", ".txt"))
            if not files:
                sys.exit(f"{folder} has no .md or .txt file")
            texts[name] = self.out / f"{name}.txt"
            texts[name].write_text("\n\n".join(path.read_text(encoding="utf-8") for path in files), encoding="utf-8")
        try:
            import sentencepiece
        except ImportError:
            print("no package sentencepiece: bytes are the tokens", flush=True)
        else:
            sentencepiece.SentencePieceTrainer.train(
                input=str(texts["train"]), model_prefix=str(self.out / "books"), vocab_size=8000, model_type="bpe",
                byte_fallback=True, character_coverage=1.0, max_sentence_length=100000, minloglevel=2)
            tokenizer = str(self.out / "books.model")
        for name, text in texts.items():
            self.moebius("data", "build", text, "--tokenizer", tokenizer, "--out", self.out / name)
        (self.out / "prepared.json").write_text(json.dumps({"tokenizer": pathlib.Path(tokenizer).name}) + "\n")

    def evaluate(self, name, run, *words, device=None):
        said = json.loads(self.moebius("eval", run, "--device", device or self.arguments.device, "--json",
                                       "--likeliest", self.out / f"{name}.tokens", *words))
        self.rows.append(dict(name=name, loss=said["loss"], perplexity=said["perplexity"], tokens=said["tokens"],
                              **{key: said["quantised"][key] for key in ("difference", "difference_error", "same_token",
                                                                         "flipped_decisions", "float_loss")
                                 if key in said.get("quantised", {})}))
        self.write()

    def agreement(self, name, other):
        a, b = ((self.out / f"{each}.tokens").read_text().split() for each in (name, other))
        return sum(x == y for x, y in zip(a, b)) / len(a)

    def write(self):
        (self.out / "rows.json").write_text(json.dumps(self.rows, indent=1) + "\n")
        base = self.rows[0]["loss"]
        lines = ["| what | loss | perplexity | change | same token as bf16 |", "|---|---|---|---|---|"]
        import math
        for row in self.rows:
            change = 100 * (math.exp(row["loss"] - base) - 1)
            same = 100 * self.agreement(self.rows[0]["name"], row["name"])
            lines.append(f"| {row['name']} | {row['loss']:.5f} | {row['perplexity']:.3f} | {change:+.3f} % | {same:.2f} % |")
        (self.out / "table.md").write_text("\n".join(lines) + "\n")

    def run(self):
        form = json.loads((self.out / "prepared.json").read_text())
        tokenizer = form["tokenizer"] if form["tokenizer"] == "bytes" else str(self.out / form["tokenizer"])
        quoted = lambda path: json.dumps(str(path))
        config = self.out / "config.toml"
        config.write_text(CONFIG.format(train=quoted(self.out / "train.idx"), tokenizer=json.dumps(tokenizer),
                                        valid=quoted(self.out / "valid.idx"), steps=self.arguments.steps,
                                        warmup=min(100, max(self.arguments.steps // 10, 1))))
        run = self.out / "float"
        if not (run / "summary.json").exists():
            self.moebius("train", config, "--run", run, "--device", self.arguments.device, "--overwrite")
        self.rows = []
        self.evaluate("bf16", run)
        quant = lambda *more: [word for each in ("quant.scheme=int8", *more) for word in ("--set", each)]
        for bits in (8, 4):
            self.evaluate(f"W{bits}A8 per channel and token, rounded", run, *quant(f"quant.weight_bits={bits}"))
            self.evaluate(f"W{bits}A8 one scale, rounded", run, *quant(f"quant.weight_bits={bits}", *NAIVE),
                          "--calibrate", self.out / "train.idx")
        self.evaluate("bf16, cache of the model", run, "--kv-cache", "model", "--batches", self.arguments.cache_batches)
        self.evaluate("bf16, cache in int8", run, "--kv-cache", "int8", "--batches", self.arguments.cache_batches)
        for scheme in ("int8-w8a8", "int8-w8a16", "int4-w4a16"):
            held = self.out / scheme
            if not held.exists():
                self.moebius("quantize", run, held, "--scheme", scheme, "--quiet")
            self.evaluate(f"{scheme}, integer kernels", held, device="cpu")
        print(f"integer kernels and rounding choose the same token for "
              f"{100 * self.agreement('int8-w8a8, integer kernels', 'W8A8 per channel and token, rounded'):.3f} %")
        print((self.out / "table.md").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=pathlib.Path)
    parser.add_argument("valid", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--stage", choices=("all", "prepare", "run"), default="all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--cache-batches", type=int, default=0, help="of the passes through caches; 0: all")
    parser.add_argument("--moebius", default=pathlib.Path(__file__).resolve().parents[2] / "moebius", type=pathlib.Path)
    arguments = parser.parse_args()
    experiment = Experiment(arguments)
    if arguments.stage in ("all", "prepare") and not (experiment.out / "prepared.json").exists():
        experiment.prepare()
    if arguments.stage in ("all", "run"):
        experiment.run()


if __name__ == "__main__":
    main()
