#!/usr/bin/env python3
"""What int8 and int4 cost a small mixture-of-experts translation model, and what training with quantised
products gets back: docs/int8.md.

    experiments/int8_bleu/run.py DATA OUT [--form cpu|gpu] [--seeds 1,2,3] [--arms NAME,...] [--moebius PROGRAM]

DATA is a folder with train.de, train.en and test files of Multi30k (test_2016_flickr.de ..., plain or .gz) or of
Tatoeba (test.de, test.en). Nothing of it is copied into the repository; OUT gets texts, corpora, runs, table.json and
table.md. Needs Python 3 alone; with the packages `sentencepiece` a joint vocabulary is trained (else bytes are the
tokens), with `sacrebleu` and --bleu N the first N test sentences are translated and scored. What is there already
is not made again, so the script can be stopped and started.
"""
import argparse
import gzip
import json
import math
import pathlib
import random
import shlex
import subprocess
import sys
import time

FORMS = {
    # Minutes on two CPU cores: shows that everything works, and the order of the arms in cross-entropy.
    "cpu": dict(vocab=2000, layers=4, dim=128, heads=4, experts=8, expert_dim=128, sequence=256, batch=8, steps=400,
                lr=3e-3, extra_steps=40, extra_lr=3e-4, device="cpu", precision="fp32"),
    # About 23 M parameters, as in the issue; hours of a GPU for 14 seeds.
    "gpu": dict(vocab=8000, layers=6, dim=256, heads=4, experts=8, expert_dim=512, sequence=512, batch=16, steps=5000,
                lr=1e-3, extra_steps=500, extra_lr=1e-4, device="cuda", precision="bf16"),
}

# One scale per weight and one remembered scale for activations; a scale per output channel and per token.
NAIVE = {"weight_scale": "tensor", "activation_scale": "tensor"}
STRONG = {"weight_scale": "channel", "activation_scale": "token"}


def arms():
    """name: (trains, settings of [quant] without the bits, what it is). Trained arms make the same extra steps."""
    noise = lambda share, **more: dict(range="learned", compensation="uniform", share=share, **more)
    return {
        "P0-one-scale": (False, {**NAIVE, "weight_scale": "all_experts", "range": "minmax"},
                         "rounded afterwards, one scale over all experts"),
        "P1-naive": (False, {**NAIVE, "range": "minmax"}, "rounded afterwards, one scale per weight, static"),
        "P1-mse": (False, {**NAIVE, "range": "mse"}, "the same, ranges by mean square error"),
        "P2-channel-token": (False, {**STRONG, "range": "minmax"}, "rounded afterwards, per channel and token"),
        "P2-mse": (False, {**STRONG, "range": "mse"}, "the same, ranges by mean square error"),
        "Q1-ste": (True, {**NAIVE, "range": "minmax"}, "trained, naive format, running ranges"),
        "Q2-learned": (True, {**NAIVE, "range": "learned"}, "trained, naive format, learned steps"),
        "Q3-noise-0.25": (True, {**NAIVE, **noise(0.25)}, "Q2 with noise on a quarter of the elements"),
        "Q3-noise-0.5": (True, {**NAIVE, **noise(0.5)}, "Q2 with noise on half of the elements"),
        "Q3-noise-1": (True, {**NAIVE, **noise(1.0)}, "Q2 with noise on all elements"),
        "G-gaussian": (True, {**NAIVE, **noise(1.0), "compensation": "gaussian"}, "Q2 with 0.1 s N(0, 1)"),
        "E1-feedback": (True, {**NAIVE, "range": "learned", "compensation": "error_feedback"},
                        "Q2 with the error of the step before"),
        "Q4-ste": (True, {**STRONG, "range": "learned"}, "trained, per channel and token, learned steps"),
        "Q4-noise-0.5": (True, {**STRONG, **noise(0.5)}, "Q4 with noise on half of the elements"),
    }


def read_lines(path):
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    with opened as file:
        return [" ".join(line.split()) for line in file]


class Task:
    """Pairs of sentences of one of the two data sets."""

    def __init__(self, folder):
        self.folder = folder
        is_multi30k = self.find("test_2016_flickr.de", must=False) is not None
        self.source, self.target = ("en", "de") if is_multi30k else ("de", "en")
        self.tests = ["test_2016_flickr", "test_2017_flickr", "test_2018_flickr", "test_2017_mscoco"]
        self.tests = [test for test in self.tests if self.find(test + ".de", must=False)] if is_multi30k else ["test"]

    def find(self, name, must=True):
        for candidate in (self.folder / name, self.folder / (name + ".gz")):
            if candidate.exists():
                return candidate
        if must:
            sys.exit(f"{self.folder} has no {name} or {name}.gz: name a folder of Multi30k or Tatoeba")
        return None

    def pairs(self, part):
        source, target = (read_lines(self.find(f"{part}.{language}")) for language in (self.source, self.target))
        if len(source) != len(target):
            sys.exit(f"{self.folder}: {part} has {len(source)} and {len(target)} lines")
        return list(zip(source, target))


class Experiment:
    def __init__(self, arguments):
        self.form = dict(FORMS[arguments.form])
        for name in ("steps", "extra_steps"):
            if getattr(arguments, name) is not None:
                self.form[name] = getattr(arguments, name)
        self.arguments = arguments
        self.out = arguments.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.task = Task(arguments.data)
        self.test_pairs = [pair for part in self.task.tests for pair in self.task.pairs(part)]
        self.separator, self.tokenizer = "\t", "bytes"
        self.seconds = {}

    def moebius(self, *words, name=None):
        command = shlex.split(self.arguments.run_with) + [str(self.arguments.moebius), *map(str, words)]
        begin = time.time()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            sys.exit(f"{shlex.join(command)}\nended with {result.returncode}:\n{result.stderr or result.stdout}")
        if name:
            self.seconds[name] = round(time.time() - begin, 1)
        return result.stdout

    # Text -----------------------------------------------------------------------------------------------------------

    def document(self, pair):
        # The separator ends the target too, so that a byte model knows where to stop.
        return f"{pair[0]}{self.separator}{pair[1]}" + (self.separator if self.tokenizer == "bytes" else "")

    def prepare(self):
        train = self.task.pairs("train")
        try:
            import sentencepiece
        except ImportError:
            print("no package sentencepiece: bytes are the tokens", flush=True)
        else:
            self.separator, self.tokenizer = "<sep>", self.out / "joint.model"
            if not self.tokenizer.exists():
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=(side for pair in train for side in pair), model_prefix=str(self.out / "joint"),
                    vocab_size=self.form["vocab"], model_type="bpe", character_coverage=1.0, byte_fallback=True,
                    user_defined_symbols=[self.separator], minloglevel=2)
        for name, pairs in (("train", train), ("test", self.test_pairs)):
            if (self.out / f"{name}.idx").exists():
                continue
            text = self.out / f"{name}.txt"
            text.write_text("".join(self.document(pair) + "\n" for pair in pairs), encoding="utf-8")
            self.moebius("data", "build", text, "--per-line", "--tokenizer", self.tokenizer, "--out", self.out / name)

    # Runs -----------------------------------------------------------------------------------------------------------

    def config(self, seed, extra):
        form, quoted = self.form, json.dumps
        text = f"""[model]
layers = {form["layers"]}
dim = {form["dim"]}
heads = {form["heads"]}
kv_heads = {form["heads"]}
qk_norm = "head"
tied_embeddings = true
[model.moe]
experts = {form["experts"]}
top_k = 2
expert_dim = {form["expert_dim"]}
balance.bias_rate = 0.005
balance.aux_loss = 0.0
[data]
files = [{quoted(str(self.out / "train.idx"))}]
tokenizer = {quoted(str(self.tokenizer))}
validation_file = {quoted(str(self.out / "test.idx"))}
[train]
steps = {form["extra_steps"] if extra else form["steps"]}
seed = {seed + (1000 if extra else 0)}
sequence = {form["sequence"]}
batch = {form["batch"]}
precision = {quoted(form["precision"])}
sample_tokens = 0
[optimizer]
lr = {form["extra_lr"] if extra else form["lr"]}
[schedule]
kind = "wsd"
warmup_steps = {form["extra_steps"] // 10 if extra else 50}
decay_fraction = 0.5
"""
        path = self.out / f"{'extra' if extra else 'float'}-{seed}.toml"
        path.write_text(text)
        return path

    def train(self, seed, name, extra, settings=()):
        run = self.out / f"runs-{seed}" / name
        if (run / "summary.json").exists():
            return run
        words = ["train", self.config(seed, extra), "--run", run, "--device", self.form["device"], "--overwrite"]
        if extra:
            words += ["--set", f"train.initial_weights={self.out / f'runs-{seed}' / 'float'}"]
        self.moebius(*words, *settings, name=f"{seed}/{name}")
        return run

    def evaluate(self, run, name, settings=()):
        """What `moebius eval` says, and the loss of each sentence pair."""
        parts, result = run.parent / f"{name}.parts.jsonl", run.parent / f"{name}.json"
        if not result.exists():
            words = ["eval", run, "--data", self.out / "test.idx", "--device", self.form["device"], "--json", "--parts",
                     parts, *settings]
            if any("activation_scale=tensor" in word for word in settings):
                words += ["--calibrate", self.out / "train.idx"]
            result.write_text(self.moebius(*words))
        return json.loads(result.read_text()), [json.loads(line) for line in parts.read_text().splitlines()]

    def translate(self, run, name):
        """Greedy translations of the first test sentences by the run as it was trained."""
        path = run.parent / f"{name}.hyp"
        if not path.exists():
            lines = []
            for source, _ in self.test_pairs[:self.arguments.bleu]:
                text = self.moebius("generate", run, "--prompt", source + self.separator, "--temperature", 0, "--tokens",
                                    120, "--device", self.form["device"])
                lines.append(text[len(source) + len(self.separator):].split("\n")[0].split(self.separator)[0].strip())
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path.read_text(encoding="utf-8").splitlines()


def settings_of(settings, bits):
    words = []
    for key, value in {"scheme": "int8", "weight_bits": bits, "calibration_batches": 8, **settings}.items():
        words += ["--set", f"quant.{key}={value}"]
    return words


def paired(parts, others):
    """Difference of mean losses per token and its standard error over the documents (ratio estimate)."""
    assert [part["tokens"] for part in parts] == [part["tokens"] for part in others]
    sums, counts = [a["loss"] - b["loss"] for a, b in zip(parts, others)], [part["tokens"] for part in parts]
    mean, n = sum(sums) / sum(counts), len(sums)
    squares = sum((s - c * mean) ** 2 for s, c in zip(sums, counts))
    return mean, math.sqrt(squares * n / (n - 1)) / sum(counts)


def bleu(hypotheses, references, against, resamples=1000):
    """BLEU, and the share of paired resamples in which it is not below `against` (paired bootstrap, Koehn 2004)."""
    import sacrebleu
    score = lambda lines, chosen: sacrebleu.corpus_bleu([lines[i] for i in chosen],
                                                        [[references[i] for i in chosen]]).score
    everything, draw = range(len(references)), random.Random(1)
    wins = sum(score(hypotheses, chosen) >= score(against, chosen)
               for chosen in ([draw.choice(everything) for _ in everything] for _ in range(resamples)))
    return score(hypotheses, everything), wins / resamples


def run_seed(experiment, seed, rows):
    arguments = experiment.arguments
    print(f"seed {seed}: float model", flush=True)
    experiment.train(seed, "float", extra=False)
    control = experiment.train(seed, "control", extra=True)
    reference = experiment.evaluate(experiment.out / f"runs-{seed}" / "float", "float")
    base = experiment.evaluate(control, "control")
    if arguments.bleu:
        base_text = experiment.translate(control, "control")
        targets = [target for _, target in experiment.test_pairs[:arguments.bleu]]
    for name, (result, parts) in (("F0-float", reference), ("F1-control", base)):
        difference, error = paired(parts, base[1])
        rows.append(dict(seed=seed, arm=name, bits=0, loss=result["loss"], difference=difference, error=error))
    for bits in arguments.bits:
        for name, (trains, settings, _) in arms().items():
            if arguments.arms and name not in arguments.arms:
                continue
            if bits == 8 and "mse" in name:
                continue
            label, words = f"{name}-{bits}", settings_of(settings, bits)
            print(f"seed {seed}: {label}", flush=True)
            run = experiment.train(seed, label, extra=True, settings=words) if trains else control
            result, parts = experiment.evaluate(run, label, () if trains else words)
            difference, error = paired(parts, base[1])
            row = dict(seed=seed, arm=name, bits=bits, loss=result["loss"], difference=difference, error=error,
                       **{key: value for key, value in result["quantised"].items() if key != "difference_error"
                          and key != "difference"})
            if arguments.bleu and trains:
                row["bleu"], row["not_below_control"] = bleu(experiment.translate(run, label), targets, base_text)
            rows.append(row)
            write_tables(experiment, rows)
    write_tables(experiment, rows)


def write_tables(experiment, rows):
    """table.json with every row, table.md with the mean over the seeds."""
    form = {key: value for key, value in experiment.form.items()}
    (experiment.out / "table.json").write_text(json.dumps(
        dict(form=form, tokenizer="bytes" if experiment.tokenizer == "bytes" else "sentencepiece",
             test_pairs=len(experiment.test_pairs), seconds=experiment.seconds, rows=rows), indent=2) + "\n")
    what = {name: text for name, (_, _, text) in arms().items()}
    what.update({"F0-float": "before the extra steps", "F1-control": "the same extra steps in floats"})
    lines = ["| bits | arm | loss, nats/token | against control | standard error | same token | other experts | what |",
             "|---|---|---|---|---|---|---|---|"]
    groups = {}
    for row in rows:
        groups.setdefault((row["bits"], row["arm"]), []).append(row)
    mean = lambda group, key: sum(row[key] for row in group) / len(group)
    for (bits, arm), group in groups.items():
        share = lambda key: f"{100 * mean(group, key):.2f} %" if key in group[0] else ""
        # Over seeds where there are several, else over the sentence pairs of the one.
        n = len(group)
        center = mean(group, "difference")
        spread = math.sqrt(sum((row["difference"] - center) ** 2 for row in group) / (n - 1) / n) if n > 1 \
            else group[0]["error"]
        lines.append(f"| {bits or 'float'} | {arm} | {mean(group, 'loss'):.4f} | {center:+.4f} | {spread:.4f} | "
                     f"{share('same_token')} | {share('flipped_decisions')} | {what[arm]} |")
    (experiment.out / "table.md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--form", choices=FORMS, default="cpu")
    parser.add_argument("--seeds", default="1", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--bits", default="8,4", type=lambda text: [int(bits) for bits in text.split(",")])
    parser.add_argument("--arms", default="", type=lambda text: [arm for arm in text.split(",") if arm])
    parser.add_argument("--steps", type=int, help="of the float model, instead of the form's")
    parser.add_argument("--extra-steps", type=int, help="of every trained arm and of the control")
    parser.add_argument("--bleu", type=int, default=0, metavar="N", help="translate the first N test sentences")
    parser.add_argument("--moebius", default=pathlib.Path(__file__).resolve().parents[2] / "moebius", type=pathlib.Path)
    parser.add_argument("--run-with", default="", help="put in front of every call of the program: 'nice -n 10'")
    arguments = parser.parse_args()
    unknown = [arm for arm in arguments.arms if arm not in arms()]
    if unknown:
        parser.error(f"--arms: unknown {', '.join(unknown)}; there are {', '.join(arms())}")
    experiment = Experiment(arguments)
    experiment.prepare()
    rows = []
    for seed in arguments.seeds:
        run_seed(experiment, seed, rows)
    print((experiment.out / "table.md").read_text())


if __name__ == "__main__":
    main()
