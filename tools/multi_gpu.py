"""The matrix of tools/multi_gpu.sh, which says what this does and how it is called."""
import argparse
import concurrent.futures
import glob
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

SMALL = """
[model]
layers = 2
dim = 64
heads = 8
kv_heads = 8
head_dim = 16
vocab = 256
[model.moe]
experts = 8
top_k = 2
expert_dim = 64
shared_experts = 1
balance.aux_loss = 0.01
balance.bias_rate = 0.001
[data]
synthetic = true
[train]
steps = 20
sequence = 64
batch = 16
precision = "fp32"
log_every = 20
sample_tokens = 0
eval_batches = 1
[optimizer]
lr = 1e-3
[schedule]
kind = "constant"
warmup_steps = 0
[checkpoint]
at_end = false
"""
LOSS_BAR = 1e-4  # relative, over all steps, in fp32


# Pipelines and micro-batches in turns need several of these and, to be interleaved, four layers: they have a run of one
# process of their own.
DEEP = {"model.layers": 4, "train.micro_batch": 2}


def is_deep(settings):
    return any(key.removeprefix("parallel.") in ("pp", "ep_pairs") for key in settings)


def layouts(n, quick):
    """(name, overrides) of runs of n processes that must train as one does."""
    rows = [("dp", {}), ("zero 1", {"zero_stage": 1}), ("zero 2", {"zero_stage": 2}), ("zero 3", {"zero_stage": 3})]
    for size in (2, 4, 8):
        if n % size == 0:
            rows.append((f"tp {size}", {"tp": size}))
            rows.append((f"ep {size}", {"ep": size}))
    if n % 2 == 0:
        rows += [("ep 2, zero 3", {"ep": 2, "zero_stage": 3}), ("ep 2, zero 1", {"ep": 2, "zero_stage": 1}),
                 ("ep 2, pairs", {"ep": 2, "ep_chunks": 1, "ep_pairs": "true"}),
                 ("ep 2, pairs, zero 2", {"ep": 2, "ep_chunks": 1, "ep_pairs": "true", "zero_stage": 2}),
                 ("pp 2", {"pp": 2}), ("pp 2, zero bubble", {"pp": 2, "pp_schedule": "zero_bubble"}),
                 ("pp 2, interleaved", {"pp": 2, "pp_schedule": "interleaved", "pp_chunks": 2}),
                 ("cp 2", {"cp": 2}), ("cp 2, zero 3, ep 2", {"cp": 2, "zero_stage": 3, "ep": 2})]
    if n % 4 == 0:
        rows += [(f"ep {n}, nodes of 2", {"ep": n, "ep_node_size": 2}),
                 ("tp 2, ep 2", {"tp": 2, "ep": 2}), ("tp 2, ep 2, zero 1", {"tp": 2, "ep": 2, "zero_stage": 1}),
                 ("tp 2, ep 2, zero 3", {"tp": 2, "ep": 2, "zero_stage": 3}),
                 ("dp 2, fsdp 2, zero 2", {"dp": 2, "fsdp": 2, "zero_stage": 2}),
                 ("tp 2, ep 4, expert_tp 1", {"tp": 2, "ep": 4, "expert_tp": 1}),
                 ("pp 2, ep 2", {"pp": 2, "ep": 2}), ("pp 2, tp 2", {"pp": 2, "tp": 2}),
                 ("pp 2, zero 3", {"pp": 2, "zero_stage": 3}), ("tp 4, 2d", {"tp": 4, "tp_mode": "2d"}),
                 ("cp 4", {"cp": 4}), ("cp 2, tp 2", {"cp": 2, "tp": 2}),
                 ("cp 2, dp 2, zero 1", {"cp": 2, "dp": 2, "zero_stage": 1}), ("cp 2, pp 2", {"cp": 2, "pp": 2})]
    if quick:
        wanted = ("dp", "zero 3", "tp 2", "ep 2", "tp 2, ep 2", f"ep {n}", "pp 2")
        rows = [row for row in rows if row[0] in wanted]
    return rows


def fast_layouts(n, quick):
    """(name, overrides) of runs that are timed, most telling first."""
    rows = [(f"dp {n}", {}), (f"ep {n}", {"ep": n}), (f"zero 3 over {n}", {"zero_stage": 3})]
    if n % 2 == 0:
        rows += [("pp 2", {"pp": 2}), ("tp 2", {"tp": 2})]
    rows += [(f"ep {n}, one chunk", {"ep": n, "ep_chunks": 1}),
             (f"ep {n}, pairs", {"ep": n, "ep_chunks": 1, "ep_pairs": "true"})]
    rows += [(f"zero 1 over {n}", {"zero_stage": 1}), (f"zero 2 over {n}", {"zero_stage": 2})]
    if n % 2 == 0:
        rows += [("pp 2, zero bubble", {"pp": 2, "pp_schedule": "zero_bubble"})]
    if n % 4 == 0:
        rows += [("tp 2, ep 2", {"tp": 2, "ep": 2}), ("tp 4", {"tp": 4}),
                 ("tp 4, 2d", {"tp": 4, "tp_mode": "2d"}), ("ep 2, zero 1", {"ep": 2, "zero_stage": 1})]
    return rows[:3] if quick else rows


class Runs:
    def __init__(self, args):
        self.args, self.began = args, time.time()
        self.out = pathlib.Path(args.out)
        self.report = {"processes": args.n, "device": "cpu" if args.gloo else "cuda", "correctness": [], "speed": [],
                       "resume": [], "faults": [], "machine": machine(args)}

    def late(self):
        return self.args.seconds and time.time() - self.began > self.args.seconds

    def train(self, name, config, num, settings, timeout, mode=()):
        """What a run says of itself; `error` when it has failed."""
        folder = self.out / "runs" / "".join(c if c.isalnum() else "-" for c in name)
        if not mode:
            shutil.rmtree(folder, ignore_errors=True)
        words = [self.args.program, "train", str(config), "--run", str(folder), *mode,
                 "--device", "cpu" if self.args.gloo else "cuda"]
        if num > 1:
            words += ["--nproc", str(num)]
        for key, value in settings.items():
            words += ["--set", f"{key}={value}"]
        began = time.time()
        row = {"name": name, "processes": num, "settings": settings}
        try:
            # A time-out is an error of the layout; the next one is tried.
            done = subprocess.run(["timeout", "-k", "5", str(timeout), *words], capture_output=True, text=True,
                                  check=False)
            row["exit_code"] = done.returncode
            if done.returncode != 0:
                lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
                told = [line for line in lines if "error" in line.lower()] or lines
                row["error"] = "\n".join(told[-6:]) or f"exit code {done.returncode}"
            else:
                row["summary"] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
                lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                row["steps"] = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            row["error"] = str(error)
        row["wall_seconds"] = round(time.time() - began, 2)
        print(f"[{time.time() - self.began:6.1f} s] {name}: "
              f"{row.get('error') or 'done in %.1f s' % row['wall_seconds']}", flush=True)
        return row

    def write(self):
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "report.json").write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")
        (self.out / "report.md").write_text(markdown(self.report), encoding="utf-8")


def machine(args):
    text = {"program": str(args.program), "nccl": {k: v for k, v in os.environ.items() if k.startswith("NCCL_")}}
    for name, words in (("gpus", ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]),
                        ("links", ["nvidia-smi", "topo", "-m"])):
        try:
            text[name] = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            text[name] = ""
    return text


def prefixed(settings):
    return {f"parallel.{key}": value for key, value in settings.items()}


def against(base, row):
    """How far a run is from that of one process."""
    if "error" in row or "error" in base:
        return
    def worst(key):
        return max(abs(a[key] - b[key]) / max(abs(b[key]), 1e-12) for a, b in zip(row["steps"], base["steps"]))
    same_length = len(row["steps"]) == len(base["steps"])
    row["loss_error"] = worst("loss") if same_length else float("nan")
    row["norm_error"] = worst("gradient_norm") if same_length else float("nan")
    row["first_norm_error"] = abs(row["steps"][0]["gradient_norm"] / base["steps"][0]["gradient_norm"] - 1)
    row["same_choices"] = all(a["load"] == b["load"] for a, b in
                              zip(row["steps"][0]["layers"], base["steps"][0]["layers"]))
    row["alike"] = same_length and row["loss_error"] <= LOSS_BAR and row["same_choices"]


def correctness(runs):
    args = runs.args
    config = runs.out / "small.toml"
    config.write_text(SMALL, encoding="utf-8")
    timeout = 120 if args.gloo else 45
    base = runs.train("one process", config, 1, {}, timeout)
    runs.report["one_process"] = base
    wanted = [layout for layout in layouts(args.n, args.quick) if args.only in layout[0]]
    deep = {}
    if any(is_deep(settings) for _, settings in wanted):
        deep = runs.train("one process, four layers", config, 1, DEEP, timeout)

    def one(layout):
        name, settings = layout
        if runs.late():
            return {"name": name, "error": "not run: out of time"}
        own = DEEP if is_deep(settings) else {}
        row = runs.train(name, config, args.n, {**own, **prefixed(settings)}, timeout)
        against(deep if own else base, row)
        # A layout that this version says it does not have is told as that.
        row["refused"] = row.get("exit_code") == 2
        return row

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(one, wanted):
            runs.report["correctness"].append(row)
            runs.write()
    resume(runs, config, base, timeout)


def resume(runs, config, base, timeout):
    """Ten steps in one layout, the rest in another, with another number of processes."""
    n = runs.args.n
    if runs.late() or runs.args.only:
        return
    half = n // 2
    pairs = [("from zero 3 and ep 2", n, {"zero_stage": 3, "ep": 2}, half, {}),
             ("from dp", half, {}, n, {"zero_stage": 1, "ep": 2})]
    for name, before, first, after, second in pairs if n % 2 == 0 else []:
        name = f"resume {name} on {before}, then on {after}"
        start = {**prefixed(first), "train.steps": 10, "checkpoint.at_end": "true"}
        row = runs.train(name, config, before, start, timeout)
        if "error" not in row:
            row = runs.train(name, config, after, prefixed(second), timeout, ("--resume",))
            if "error" not in row and len(row["steps"]) < len(base["steps"]):
                row["error"] = f"{len(row['steps'])} steps in metrics.jsonl"
        against(base, row)
        runs.report["resume"].append(row)
        runs.write()


def faults(runs):
    """A rank that is killed, and one that hangs, in the middle of steps: how long until all have ended, and the words."""
    config = runs.out / "small.toml"
    config.write_text(SMALL, encoding="utf-8")
    for name, number, expected in (("a rank is killed", signal.SIGKILL, "was killed by signal 9"),
                                   ("a rank hangs", signal.SIGSTOP, "did not end within 6 s (parallel.timeout_s)")):
        if runs.late():
            break
        folder = runs.out / "runs" / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        words = [runs.args.program, "train", str(config), "--run", str(folder), "--nproc", str(runs.args.n),
                 "--device", "cpu" if runs.args.gloo else "cuda", "--set", "train.steps=1000000",
                 "--set", "parallel.timeout_s=6", "--set", "parallel.zero_stage=1"]
        row = {"name": name}
        with open(runs.out / "fault.log", "w+", encoding="utf-8") as log:
            child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log)
            try:
                metrics, deadline = folder / "metrics.jsonl", time.time() + 60
                while time.time() < deadline and child.poll() is None:
                    if metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") > 20:
                        break
                    time.sleep(0.1)
                time.sleep(1.5)  # ranks tell where they are twice a second
                ranks = pathlib.Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text(encoding="utf-8").split()
                os.kill(int(ranks[1]), number)
                began = time.time()
                row["exit_code"] = child.wait(timeout=40)
                row["seconds"] = round(time.time() - began, 1)
            except (OSError, IndexError, subprocess.TimeoutExpired) as error:
                row["error"] = str(error)
                child.kill()
            log.seek(0)
            row["said"] = [line for line in log.read().splitlines() if "error" in line]
        row["as_expected"] = "error" not in row and any(expected in line for line in row["said"])
        print(f"[{time.time() - runs.began:6.1f} s] {name}: {row}", flush=True)
        runs.report["faults"].append(row)
        runs.write()


def speed(runs):
    args = runs.args
    root = pathlib.Path(os.environ.get("MOEBIUS_SOURCE_DIR", pathlib.Path(__file__).resolve().parent.parent))
    steps = args.steps or (9 if args.quick else 12)
    for shape in args.shape or (["qwen3-4l"] if args.quick else ["qwen3-4l", "mixtral-2l"]):
        config = root / "configs" / "bench" / f"{shape}.toml"
        batch = 4  # sequences of each process; of a pipeline too, which passes them one by one
        common = {"train.steps": steps, "train.log_every": steps, "train.eval_batches": 0}
        plan = [("one process", 1, {}, ("on",))]
        # Tensor ranks wait for each exchange at once: overlap changes nothing there.
        plan += [(name, args.n, prefixed(settings), ("on",) if "parallel.tp" in settings else ("off", "on"))
                 for name, settings in fast_layouts(args.n, args.quick)]
        for name, num, settings, overlaps in plan:
            if args.only and num > 1 and args.only not in name:
                continue
            parts = num // int(settings.get("parallel.tp", 1))
            micro = 1 if "parallel.pp" in settings else batch // 2 if "parallel.ep_pairs" in settings else 0
            for overlap in overlaps:
                if runs.late():
                    runs.report["speed"].append({"name": name, "shape": shape, "error": "not run: out of time"})
                    continue
                row = runs.train(f"{shape} {name} overlap {overlap}", config, num,
                                 {**common, **settings, "train.micro_batch": micro, "train.batch": batch * parts,
                                  "parallel.overlap": "true" if overlap == "on" else "false"}, 60)
                row.update({"name": name, "shape": shape, "overlap": overlap})
                row.pop("steps", None)
                runs.report["speed"].append(row)
                runs.write()


def number(value, digits=2):
    return "" if value is None else f"{value:.{digits}f}"


def markdown(report):
    lines = [f"# Layouts of {report['processes']} processes on {report['device']}", "",
             report["machine"].get("gpus", ""), "", f"NCCL's variables: {report['machine']['nccl'] or 'none'}", "",
             "## Against one process, 20 steps in fp32", "",
             "| layout | loss, largest relative difference | norm | first step's norm | first choices | verdict |",
             "|---|---:|---:|---:|---|---|"]
    for row in report["correctness"] + report["resume"]:
        if "error" in row:
            verdict = "refused: " if row.get("refused") else "" if row["error"].startswith("not run") else "FAILED: "
            lines.append(f"| {row['name']} | | | | | {verdict}{row['error'].splitlines()[-1][:160]} |")
        elif "alike" in row:
            lines.append(f"| {row['name']} | {row['loss_error']:.1e} | {row['norm_error']:.1e} | "
                         f"{row['first_norm_error']:.1e} | {'same' if row['same_choices'] else 'OTHER'} | "
                         f"{'alike' if row['alike'] else 'NOT ALIKE'} |")
    if report["faults"]:
        lines += ["", "## Faults", "", "| what | all had ended after | said |", "|---|---:|---|"]
        for row in report["faults"]:
            said = "; ".join(row["said"]).replace("|", "/") or row.get("error", "")
            lines.append(f"| {row['name']} | {row.get('seconds', 'not')} s | {said} |")
    if report["speed"]:
        lines += ["", "## Speed", "", "GPUs stand still: the median step's time in which rank 0's stream waited for "
                  "an exchange.", "",
                  "| shape | layout | overlap | step, ms | tokens/s | MFU, % | stands still, ms | peak memory, GiB |",
                  "|---|---|---|---:|---:|---:|---:|---:|"]
    for row in report["speed"]:
        if "error" in row:
            lines.append(f"| {row['shape']} | {row['name']} | {row.get('overlap', '')} | "
                         f"{row['error'].splitlines()[-1][:160]} | | | | |")
            continue
        s = row["summary"]
        waited = s.get("median_exposed_communication_seconds")
        lines.append(
            f"| {row['shape']} | {row['name']} | {row['overlap']} | {1e3 * s['median_step_seconds']:.1f} | "
            f"{s['median_tokens_per_second']:.0f} | {number(100 * s['mfu'], 1) if 'mfu' in s else ''} | "
            f"{number(1e3 * waited, 1) if waited is not None else ''} | {s['peak_memory_bytes'] / 2**30:.1f} |")
    return "\n".join(lines) + "\n"


def parse():
    parser = argparse.ArgumentParser(prog="tools/multi_gpu.sh", description=__doc__)
    parser.add_argument("n", nargs="?", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gloo", action="store_true")
    parser.add_argument("--share", action="store_true")
    parser.add_argument("--out", default="runs/multi_gpu")
    parser.add_argument("--program")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--shape", action="append")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--part", choices=["all", "correctness", "faults", "speed"], default="all")
    args = parser.parse_args()
    num_gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    if args.n is None:
        args.n = 2 if args.gloo else min(8, num_gpus)
    if args.n < 2:
        parser.error(f"{args.n} processes: a layout needs at least 2 (GPUs found: {num_gpus})")
    if not args.gloo and num_gpus < (1 if args.share else args.n):
        parser.error(f"{args.n} GPUs asked for, {num_gpus} found; --share lets processes share one, --gloo runs on CPUs")
    if args.program is None:
        built = pathlib.Path(__file__).resolve().parent.parent / "build" / "release" / "bin" / "moebius"
        args.program = str(built) if built.exists() else shutil.which("moebius")
    if args.program is None:
        parser.error("there is no program: build it (./moebius build) or name it with --program")
    return args


def main():
    args = parse()
    runs = Runs(args)
    runs.out.mkdir(parents=True, exist_ok=True)
    if args.part in ("all", "correctness"):
        correctness(runs)
    if args.part == "faults" or (args.part == "all" and not args.only):
        faults(runs)
    if not args.gloo and args.part in ("all", "speed"):
        speed(runs)
    runs.write()
    print(f"report: {runs.out / 'report.md'}")
    judged = runs.report["correctness"] + runs.report["resume"]
    bad = [row["name"] for row in runs.report["faults"] if not row["as_expected"]]
    bad += [row["name"] for row in judged
           if not row.get("refused") and not row.get("alike") and row.get("error") != "not run: out of time"]
    if bad:
        print(f"not alike: {'; '.join(bad)}", file=sys.stderr)
    return 1 if bad or "error" in runs.report.get("one_process", {}) else 0


if __name__ == "__main__":
    sys.exit(main())
