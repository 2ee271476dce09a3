#!/usr/bin/env bash
# Runs the layouts of a run of several processes on this machine's GPUs, and writes what came out: whether each trains
# as one process does (20 steps in fp32: losses, norms, the first step's choices of experts), what each does in a second
# on the shapes of configs/bench, and how long GPUs stand still for others with overlap off and on.
#
# usage: tools/multi_gpu.sh [N] [--quick] [--gloo] [--out FOLDER] [--program FILE] [--seconds S] [--only TEXT]
#   N          GPUs, each with a process of its own (default: all of the machine, at most 8)
#   --quick    fewer layouts, shorter runs
#   --gloo     no GPUs: the part about correctness on N processes of the CPU (default 2) over Gloo
#   --share    N processes on fewer GPUs: data then goes through the host, over Gloo
#   --part     one of correctness, faults (a rank that is killed, one that hangs) and speed, alone
#   --out      default runs/multi_gpu; report.md and report.json are written there after every run
#   --program  default build/release/bin/moebius, or the one on PATH
#   --seconds  no run is started later than this after the start (default: no limit)
#   --jobs     of the part about correctness that run at the same time (default 1)
#   --shape    of configs/bench that is timed; may be given again (default: qwen3-4l and mixtral-2l)
#   --steps    of each run that is timed (default 12; the first three do not count)
#   --only     layouts whose name has this in it
# The exit code is 0 when every layout that ran trained alike, 1 when one did not or failed, 2 for wrong arguments.
set -uo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# Multicast over NVLink can put GPUs that others share out of service; what is measured here does without.
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
exec python3 "$here/multi_gpu.py" "$@"
