"""What the peer scripts share: the shapes of configs/bench, model FLOPs, medians of timed calls, the RESULT line."""
import json
import pathlib
import platform
import statistics
import time
import tomllib

import torch

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs" / "bench"


def shape_names():
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def load_shape(name):
    with open(CONFIGS / f"{name}.toml", "rb") as file:
        return tomllib.load(file)


def step_flops(shape):
    """Forward and backward of one step: 6 x tokens x active linear weights, causal attention counted once.

    The same count as `model_tflops` of a Moebius run: router and output layer included, embedding look-up not.
    """
    model, moe, train = shape["model"], shape["model"]["moe"], shape["train"]
    width, sequence = model["heads"] * model["head_dim"], train["sequence"]
    attention = model["dim"] * model["head_dim"] * (2 * model["heads"] + 2 * model["kv_heads"])
    experts = model["dim"] * (moe["experts"] + 3 * moe["expert_dim"] * moe["top_k"])
    weights = model["vocab"] * model["dim"] + model["layers"] * (attention + experts)
    return 6 * train["batch"] * sequence * (weights + model["layers"] * sequence * width)


def device_name(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def median_ms(call, device, warmup=5, repeats=21):
    """Median time of one call in milliseconds. CUDA: Triton's benchmark, events around a cold second-level cache."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(call, warmup=50, rep=200, return_mode="median")
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[warmup:])


class PeakMemory:
    """Peak bytes since construction: the CUDA allocator's, or on the CPU the growth of the resident set."""

    def __init__(self, device):
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew (Linux)
            self._start = self._status("VmRSS")

    def bytes(self):
        return (torch.cuda.max_memory_allocated() if self._cuda else self._status("VmHWM")) - self._start

    @staticmethod
    def _status(key):
        for line in open("/proc/self/status"):
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"/proc/self/status has no {key}")


def print_result(device, **fields):
    """One machine-readable line; what was measured first, where it was measured last."""
    fields |= {"device": device_name(device), "torch": torch.__version__}
    if device == "cpu":
        fields["threads"] = torch.get_num_threads()
    print("RESULT " + json.dumps(fields), flush=True)
