#!/usr/bin/env python3
"""What int8 and int4 cost a small mixture-of-experts translation model, and what training with quantised
products gets back: docs/int8.md.

    experiments/int8_bleu/run.py DATA OUT [--form cpu|gpu] [--seeds 1,2,3] [--arms NAME,...] [--moebius PROGRAM]

DATA is a folder with train.de, train.en and test files of Multi30k (test_2016_flickr.de ..., plain or .gz) or of
Tatoeba (test.de, test.en). Nothing of it is copied into the repository; OUT gets texts, corpora, runs, rows.json and
tables.md. Stages: `prepare` makes texts and corpora, and with the package `sentencepiece` a joint vocabulary (else
bytes are the tokens); `run` needs OUT alone, so that it may be done on another machine; `score` makes the tables, with
BLEU where the packages `sacrebleu` and `numpy` are there. What is there already is not made again, so that the
script can be stopped and started. Trainings and evaluations run side by side, --jobs at a time, on all GPUs.
"""
import argparse
import concurrent.futures
import gzip
import json
import math
import os
import pathlib
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time

from tables import write_tables

FORMS = {
    # Minutes on two CPU cores: shows that everything works, and the order of the arms in cross-entropy.
    "cpu": dict(vocab=2000, layers=4, dim=128, heads=4, experts=8, expert_dim=128, sequence=256, batch=8, steps=400,
                lr=3e-3, extra_steps=40, extra_lr=3e-4, device="cpu", precision="fp32"),
    # About 23 M parameters, as in the issue; ends where the loss on other pairs is least.
    "gpu": dict(vocab=8000, layers=6, dim=256, heads=4, experts=8, expert_dim=512, sequence=512, batch=16, steps=650,
                lr=1e-3, extra_steps=100, extra_lr=5e-5, device="cuda", precision="bf16"),
    # The same, trained until it knows its pairs by heart: noise of any kind then helps.
    "long": dict(vocab=8000, layers=6, dim=256, heads=4, experts=8, expert_dim=512, sequence=512, batch=16, steps=1000,
                 lr=1e-3, extra_steps=200, extra_lr=1e-4, device="cuda", precision="bf16"),
    # A student: an eighth of the size, trained for longer.
    "student": dict(vocab=8000, layers=3, dim=128, heads=4, experts=8, expert_dim=128, sequence=512, batch=16,
                    steps=2000, lr=3e-3, extra_steps=200, extra_lr=3e-4, device="cuda", precision="bf16"),
    # Weights and activations that grow outliers: a high rate, no norm of queries and keys, no weight decay.
    "outliers": dict(vocab=8000, layers=6, dim=256, heads=4, experts=8, expert_dim=512, sequence=512, batch=16,
                     steps=1500, lr=4e-3, extra_steps=200, extra_lr=2e-4, device="cuda", precision="bf16",
                     qk_norm="none", weight_decay=0.0),
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


# Both in floats, with the same extra steps; the second sees other batches: how far two equal runs lie apart.
CONTROLS = {"F1-control": 1000, "F2-control-again": 2000}
# What --more-seeds trains and rounds, by weight bits: the arms that the claims are about.
KEY_ARMS = {8: ("P1-naive", "P2-channel-token", "Q1-ste", "Q2-learned", "Q3-noise-0.5"),
            6: ("P1-mse", "P2-mse", "Q2-learned", "Q3-noise-0.5"),
            4: ("P1-mse", "P2-mse", "Q2-learned", "Q3-noise-0.5", "Q4-ste", "Q4-noise-0.5")}
BEAM_ARMS = ("F1-control", "P1-naive", "P2-channel-token", "Q3-noise-0.5")


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
        tests = ["test_2016_flickr", "test_2017_flickr", "test_2018_flickr", "test_2017_mscoco"]
        self.tests = [test for test in tests if self.find(test + ".de", must=False)] if is_multi30k else ["test"]
        self.valid = "val" if is_multi30k else "valid"

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


def prepare(arguments, program):
    """Texts, vocabulary and corpora in OUT."""
    out, task = arguments.out, Task(arguments.data)
    parts = {"train": task.pairs("train"), "valid": task.pairs(task.valid),
             "test": [pair for part in task.tests for pair in task.pairs(part)]}
    separator, tokenizer = "\t", "bytes"
    try:
        import sentencepiece
    except ImportError:
        print("no package sentencepiece: bytes are the tokens", flush=True)
    else:
        separator, tokenizer = "<sep>", str(out / "joint.model")
        if not (out / "joint.model").exists():
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(side for pair in parts["train"] for side in pair),
                model_prefix=str(out / "joint"), vocab_size=FORMS[arguments.form]["vocab"], model_type="bpe",
                character_coverage=1.0, byte_fallback=True, user_defined_symbols=[separator], minloglevel=2)
    # A byte model needs the separator behind the target too, to know where to stop; the space makes the target's
    # first piece one that begins a word.
    end = separator if tokenizer == "bytes" else ""
    begin = "" if tokenizer == "bytes" else " "
    for name, pairs in parts.items():
        if (out / f"{name}.idx").exists():
            continue
        text = out / f"{name}.txt"
        text.write_text("".join(f"{source}{separator}{begin}{target}{end}\n" for source, target in pairs),
                        encoding="utf-8")
        program("data", "build", text, "--per-line", "--tokenizer", tokenizer, "--out", out / name)
    tests = parts["test"][:arguments.test_pairs or None]
    (out / "prompts.txt").write_text("".join(source + separator + "\n" for source, _ in tests), encoding="utf-8")
    (out / "references.txt").write_text("".join(target + "\n" for _, target in tests), encoding="utf-8")
    (out / "prepared.json").write_text(json.dumps(
        dict(separator=separator, tokenizer=pathlib.Path(tokenizer).name, pairs=len(tests))) + "\n")


class Programs:
    """Runs the program on the next free GPU; at most --jobs at a time."""

    def __init__(self, arguments, device):
        self.arguments = arguments
        self.slots = queue.Queue()
        gpus = gpu_names() if device == "cuda" else [""]
        for slot in range(arguments.jobs * len(gpus)):
            self.slots.put(gpus[slot % len(gpus)])
        self.workers = self.slots.qsize()
        self.begin = time.time()
        self.lock = threading.Lock()
        self.log = []

    def out_of_time(self):
        return self.arguments.seconds > 0 and time.time() - self.begin > self.arguments.seconds

    def __call__(self, *words, name=""):
        command = shlex.split(self.arguments.run_with) + [str(self.arguments.moebius), *map(str, words)]
        gpu = self.slots.get()
        begin = time.time()
        try:
            environment = dict(os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}))
            result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        finally:
            self.slots.put(gpu)
        seconds = time.time() - begin
        if result.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)}\nended with {result.returncode}:\n"
                               f"{(result.stderr or result.stdout)[-2000:]}")
        if name:
            with self.lock:
                self.log.append(dict(name=name, gpu=gpu, begin=round(begin - self.begin, 1), seconds=round(seconds, 1)))
            print(f"{time.time() - self.begin:7.1f} s  {name}: {seconds:.1f} s", flush=True)
        return result.stdout


def gpu_names():
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ["0"]
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU"))] or ["0"]


class Experiment:
    def __init__(self, arguments, program):
        self.arguments, self.program, self.out = arguments, program, arguments.out
        self.form = dict(FORMS[arguments.form])
        for name in ("steps", "extra_steps"):
            if getattr(arguments, name) is not None:
                self.form[name] = getattr(arguments, name)
        tokenizer = json.loads((self.out / "prepared.json").read_text())["tokenizer"]
        self.tokenizer = "bytes" if tokenizer == "bytes" else str(self.out / tokenizer)

    def folder(self, seed):
        return self.out / f"{self.arguments.form}-{seed}"

    def config(self, seed, extra):
        form, quoted = self.form, json.dumps
        text = f"""[model]
layers = {form["layers"]}
dim = {form["dim"]}
heads = {form["heads"]}
kv_heads = {form["heads"]}
qk_norm = {quoted(form.get("qk_norm", "head"))}
tied_embeddings = true
[model.moe]
experts = {form["experts"]}
top_k = 2
expert_dim = {form["expert_dim"]}
balance.bias_rate = 0.005
balance.aux_loss = 0.0
[data]
files = [{quoted(str(self.out / "train.idx"))}]
tokenizer = {quoted(self.tokenizer)}
validation_file = {quoted(str(self.out / "valid.idx"))}
[train]
steps = {form["extra_steps"] if extra else form["steps"]}
seed = {seed + extra}
sequence = {form["sequence"]}
batch = {form["batch"]}
precision = {quoted(form["precision"])}
sample_tokens = 0
eval_every = {0 if extra else max(form["steps"] // 6, 1)}
[optimizer]
lr = {form["extra_lr"] if extra else form["lr"]}
weight_decay = {form.get("weight_decay", 0.1)}
[schedule]
kind = "wsd"
warmup_steps = {max(form["extra_steps"] // 10, 1) if extra else min(50, max(form["steps"] // 10, 1))}
decay_fraction = 0.5
"""
        path = self.folder(seed) / f"config-{extra}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def train(self, seed, name, extra=0, settings=()):
        run = self.folder(seed) / name
        if (run / "summary.json").exists():
            return run
        words = ["train", self.config(seed, extra), "--run", run, "--device", self.form["device"], "--overwrite"]
        if self.arguments.threads:
            words += ["--threads", self.arguments.threads]
        if extra:
            words += ["--set", f"train.initial_weights={self.folder(seed) / 'float'}"]
        self.program(*words, *settings, name=f"train {seed} {name}")
        return run

    def evaluate(self, seed, run, name, beams, settings=()):
        """What `moebius eval` says, the loss of each sentence pair (NAME.parts) and translations (NAME.text.*)."""
        stem = self.folder(seed) / name
        result = stem.parent / f"{name}.json"
        if result.exists():
            return
        words = ["eval", run, "--data", self.out / "test.idx", "--device", self.form["device"], "--json", "--parts",
                 f"{stem}.parts", *settings]
        if self.arguments.threads:
            words += ["--threads", self.arguments.threads]
        if self.arguments.translate:
            words += ["--prompts", self.out / "prompts.txt", "--continuations", f"{stem}.text", "--tokens", 80,
                      "--beams", ",".join(map(str, beams))]
        if any("activation_scale=tensor" in word for word in settings):
            words += ["--calibrate", self.out / "train.idx"]
        said = self.program(*words, name=f"eval {seed} {name}")
        result.write_text(said)

    def beams(self, seed, arm):
        # A beam of 4 costs as much as everything else together: one seed.
        wanted = self.arguments.beam and arm in BEAM_ARMS and seed == self.arguments.seeds[0]
        return (1, 4) if wanted else (1,)

    def arm(self, seed, name, bits):
        trains, settings, _ = arms()[name]
        label, words = f"{name}-{bits}", settings_of(settings, bits)
        if (self.folder(seed) / f"{label}.json").exists():
            return
        control = self.folder(seed) / "F1-control"
        run = self.train(seed, label, 1000, words) if trains else control
        self.evaluate(seed, run, label, self.beams(seed, name), () if trains else words)
        if trains and not self.arguments.keep:
            shutil.rmtree(run)

    def wanted(self):
        """(seed, arm, bits) in the order of their worth."""
        every = [(name, bits) for bits in self.arguments.bits for name in self.arguments.arms or arms()
                 # Nothing is clipped at 8 bits.
                 if not (bits == 8 and "mse" in name)]
        is_key = lambda name, bits: name in KEY_ARMS.get(bits, ())
        seeds = self.arguments.seeds + self.arguments.more_seeds
        yield from ((seed, name, bits) for name, bits in every if is_key(name, bits) for seed in seeds)
        yield from ((seed, name, bits) for name, bits in every if not is_key(name, bits)
                    for seed in self.arguments.seeds)

    def begin_seed(self, seed):
        self.train(seed, "float")
        self.evaluate(seed, self.folder(seed) / "float", "F0-float", (1,))
        for name, extra in CONTROLS.items():
            self.evaluate(seed, self.train(seed, name, extra), name, self.beams(seed, name))

    def run(self):
        """Every seed's float model and controls first, then the arms of all seeds."""
        failures = []

        def guarded(work, *words):
            if self.program.out_of_time():
                failures.append(f"not begun, time is over: {words}")
                return
            try:
                work(*words)
            except Exception as error:  # the others go on
                failures.append(f"{words}: {error}")
                print(f"FAILED {words}: {error}", flush=True)

        with concurrent.futures.ThreadPoolExecutor(self.program.workers) as pool:
            begun = {seed: pool.submit(guarded, self.begin_seed, seed) for seed in self.arguments.seeds + self.arguments.more_seeds}
            for seed in begun:
                begun[seed].result()
            done = [pool.submit(guarded, self.arm, seed, name, bits) for seed, name, bits in self.wanted()
                    if (self.folder(seed) / "F1-control.json").exists()]
            concurrent.futures.wait(done)
        (self.out / f"{self.arguments.form}.log.json").write_text(json.dumps(
            dict(form=self.form, jobs=self.program.workers, seconds=round(time.time() - self.program.begin, 1),
                 calls=self.program.log, failures=failures), indent=1) + "\n")
        return failures


def settings_of(settings, bits):
    words = []
    for key, value in {"scheme": "int8", "weight_bits": bits, "calibration_batches": 8, **settings}.items():
        words += ["--set", f"quant.{key}={value}"]
    return words


def main():
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--stage", choices=("all", "prepare", "run", "score"), default="all")
    parser.add_argument("--form", choices=FORMS, default="cpu")
    parser.add_argument("--seeds", default="1", type=numbers)
    parser.add_argument("--more-seeds", default="", type=lambda text: numbers(text) if text else [],
                        help="further seeds, for the arms that the claims are about")
    parser.add_argument("--bits", default="8,4", type=numbers)
    parser.add_argument("--arms", default="", type=lambda text: [arm for arm in text.split(",") if arm])
    parser.add_argument("--steps", type=int, help="of the float model, instead of the form's")
    parser.add_argument("--extra-steps", type=int, help="of every trained arm and of the control")
    parser.add_argument("--no-translate", dest="translate", action="store_false", help="cross-entropy alone")
    parser.add_argument("--no-bleu", dest="bleu", action="store_false", help="tables without BLEU")
    parser.add_argument("--beam", action="store_true", help="of the first seed also a beam of 4, for " + ", ".join(BEAM_ARMS))
    parser.add_argument("--test-pairs", type=int, default=0, help="translate only the first; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="programs at a time, for each GPU")
    parser.add_argument("--threads", type=int, default=0, help="of each program")
    parser.add_argument("--seconds", type=float, default=0, help="nothing is begun later than this")
    parser.add_argument("--keep", action="store_true", help="keep the runs of trained arms")
    parser.add_argument("--moebius", default=pathlib.Path(__file__).resolve().parents[2] / "moebius", type=pathlib.Path)
    parser.add_argument("--run-with", default="", help="put in front of every call of the program: 'nice -n 10'")
    arguments = parser.parse_args()
    unknown = [arm for arm in arguments.arms if arm not in arms()]
    if unknown:
        parser.error(f"--arms: unknown {', '.join(unknown)}; there are {', '.join(arms())}")
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    program = Programs(arguments, FORMS[arguments.form]["device"])
    if arguments.stage in ("all", "prepare") and not (arguments.out / "prepared.json").exists():
        prepare(arguments, program)
    failures = []
    if arguments.stage in ("all", "run"):
        failures = Experiment(arguments, program).run()
    if arguments.stage in ("all", "score"):
        what = {name: text for name, (_, _, text) in arms().items()}
        what.update({"F0-float": "before the extra steps", "F1-control": "the same extra steps in floats",
                     "F2-control-again": "the same with other batches"})
        print(write_tables(arguments.out, arguments.form, what, arguments.bleu))
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
