"""What the peers share: arguments, rows, the clock, and the line they print."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import argparse
import importlib.metadata
import json
import resource
import statistics
import time
from pathlib import Path

LORA = dict(
    r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
)


def arguments(about):
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="JSONL of tokenized rows")
    parser.add_argument("--output", type=Path, required=True, help="folder for metrics.jsonl")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--lora", action="store_true", help="rank 16, all linear")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--precompute", action="store_true", help="the reference's log-probs")
    parser.add_argument("--teacher", type=Path, help="distil the logits of this model")
    parser.add_argument("--attention", default="sdpa")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    return args


def read_rows(args):
    with open(args.data) as file:
        rows = [json.loads(line) for line in file if line.strip()]
    wanted = args.batch_size * args.max_steps
    if len(rows) < wanted:
        raise SystemExit(f"`{args.data}` has {len(rows)} rows, {wanted} are needed")
    return rows[:wanted]


def process_start():
    """When this process began, as time.time() tells it: imports count."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))


class Meter:
    """Writes a line of metrics.jsonl for each step, as halter does, and a JSON line at the end."""

    def __init__(self, name, args, tokens_per_step):
        self.name, self.args, self.tokens = name, args, tokens_per_step
        self.seconds, self.losses, self.first = [], [], None
        self.start = process_start()
        self.file = open(args.output / "metrics.jsonl", "w")

    def step(self, seconds, loss):
        if self.first is None:
            self.first = time.time() - self.start
        self.seconds.append(seconds)
        self.losses.append(loss)
        line = dict(step=len(self.seconds), loss=loss, seconds=seconds)
        self.file.write(json.dumps(line | {"tokens_per_second": self.tokens / seconds}) + "\n")
        self.file.flush()

    def report(self):
        """The first step warms caches and allocators up and is left out of the median."""
        median = statistics.median(self.seconds[1:] or self.seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1048576
        packages = ("torch", "transformers", "trl", "peft")
        out = dict(
            name=self.name,
            tok_s=round(self.tokens / median, 1),
            step_s=round(median, 3),
            peak_rss_gib=round(peak, 3),
            first_step_s=round(self.first, 2),
            steps=[round(second, 3) for second in self.seconds],
            losses=self.losses,
            threads=self.args.threads,
            versions={name: importlib.metadata.version(name) for name in packages},
        )
        print(json.dumps(out), flush=True)
