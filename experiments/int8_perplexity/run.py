#!/usr/bin/env python3
"""What quantised weights, activations and caches cost a mixture-of-experts language model of books in perplexity:
docs/int8.md.

    experiments/int8_perplexity/run.py BOOKS VALID OUT [--device cuda|cpu] [--steps N] [--moebius PROGRAM]

BOOKS and VALID are folders of Markdown or text files; no file of VALID is trained on. Stages: `prepare` makes a
vocabulary (with the package `sentencepiece`; else bytes are the tokens) and corpora in OUT, which is all that the others
need. `train` trains in bf16 on --device and reads the whole of VALID, in floats and with products rounded as the integer
kernels round them. `held` does so on the CPU: in floats, rounded, by the integer kernels, and through caches of keys and
values in the model's dtype and in int8.
"""
import argparse
import json
import math
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
experts = 8
top_k = 2
expert_dim = 256
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

    def evaluate(self, name, run, *words):
        said = json.loads(self.moebius("eval", run, "--device", self.arguments.device, "--json",
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
        (self.out / f"{self.stage}.json").write_text(json.dumps(self.rows, indent=1) + "\n")
        base = self.rows[0]["loss"]
        lines = ["| what | loss | perplexity | change | same token as bf16 |", "|---|---|---|---|---|"]
        for row in self.rows:
            change = 100 * (math.exp(row["loss"] - base) - 1)
            same = 100 * self.agreement(self.rows[0]["name"], row["name"])
            lines.append(f"| {row['name']} | {row['loss']:.5f} | {row['perplexity']:.3f} | {change:+.3f} % | {same:.2f} % |")
        (self.out / f"{self.stage}.md").write_text("\n".join(lines) + "\n")

    def train(self):
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
        self.begin("trained")
        self.evaluate("bf16", run)
        for bits in (8, 4):
            self.evaluate(f"W{bits}A8 per channel and token, rounded", run, *quant(f"quant.weight_bits={bits}"))
            self.evaluate(f"W{bits}A8 one scale, rounded", run, *quant(f"quant.weight_bits={bits}", *NAIVE),
                          "--calibrate", self.out / "train.idx")
        self.end()

    def held(self):
        self.arguments.device = "cpu"
        run = self.out / "float"
        data = ("--data", self.out / "valid.idx")
        self.begin("held")
        self.evaluate("bf16", run, *data)
        self.evaluate("W8A8 per channel and token, rounded", run, *quant(), *data)
        self.evaluate("bf16, cache of the model", run, "--kv-cache", "model", *data)
        self.evaluate("bf16, cache in int8", run, "--kv-cache", "int8", *data)
        for scheme in ("int8-w8a8", "int8-w8a16", "int4-w4a16"):
            held = self.out / scheme
            if not held.exists():
                self.moebius("quantize", run, held, "--scheme", scheme, "--quiet")
            self.evaluate(f"{scheme}, integer kernels", held, *data)
        print(f"integer kernels and rounding choose the same token for "
              f"{100 * self.agreement('int8-w8a8, integer kernels', 'W8A8 per channel and token, rounded'):.3f} %")
        self.end()

    def begin(self, stage):
        self.rows, self.stage = [], stage

    def end(self):
        print((self.out / f"{self.stage}.md").read_text())


def quant(*more):
    return [word for each in ("quant.scheme=int8", *more) for word in ("--set", each)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=pathlib.Path)
    parser.add_argument("valid", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--stage", choices=("all", "prepare", "train", "held"), default="all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--moebius", default=pathlib.Path(__file__).resolve().parents[2] / "moebius", type=pathlib.Path)
    arguments = parser.parse_args()
    experiment = Experiment(arguments)
    if arguments.stage in ("all", "prepare") and not (experiment.out / "prepared.json").exists():
        experiment.prepare()
    if arguments.stage in ("all", "train"):
        experiment.train()
    if arguments.stage in ("all", "held"):
        experiment.held()


if __name__ == "__main__":
    main()
