"""What the scripts of this folder share: a model's arithmetic, rows, and a run measured from
outside."""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("HALTER_ASSETS") or ROOT / "assets")
ROWS = ROOT / "oracle" / "golden" / "smollm2" / "sft_rows.jsonl"
# An allocator that keeps what it has.
TUNED = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
# What makes a contender keep to instructions that the machine has more than.
ISA = {
    "avx2": {
        "HALTER_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "avx512": {},
}


def add_arguments(parser):
    """Those of every script that runs halter."""
    add = parser.add_argument
    add("--halter", default=str(ROOT / "target/release/halter"), help="the binary")
    add("--halter-options", default="", help="more of its options, as '--optim adamw_8bit'")
    add("--python", default=os.environ.get("HALTER_PYTHON", "python3"), help="with what is needed")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--isa", choices=ISA, type=isa, help="vector instructions; the best there are if left out")
    add("--peak", type=float, metavar="GFLOPS", help="FMA peak of these threads, for MFU")


def isa(name):
    if f" {name}" not in Path("/proc/cpuinfo").read_text():
        raise argparse.ArgumentTypeError(f"this processor has no `{name}`")
    return name


def shape(model):
    """config.json of a checkpoint."""
    return json.loads((Path(model) / "config.json").read_text())


def block_matrices(shape):
    """Name and shape of the matrices of a block."""
    hidden, ffn = shape["hidden_size"], shape["intermediate_size"]
    head_dim = shape.get("head_dim") or hidden // shape["num_attention_heads"]
    q, kv = (head_dim * shape[f"num_{name}_heads"] for name in ("attention", "key_value"))
    return {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }


def operations(shape, mode, rows, length):
    """Floating-point operations that a step needs, for MFU: 6 per token and element of a matrix, the
    head with them and the embedding not, 4 where LoRA freezes them (the adapter is not counted); and
    causal attention, 6 per token, block, position and width; a third of all that for a teacher, which
    only goes forward. What is recomputed does not count."""
    blocks, matrices = shape["num_hidden_layers"], block_matrices(shape)
    elements = blocks * sum(rows * columns for rows, columns in matrices.values())
    elements += shape["vocab_size"] * shape["hidden_size"]
    per_element = {"full": 6, "distill": 6, "lora": 4, "teacher": 2}.get(mode)
    attention = 2 if mode == "teacher" else 6
    attention *= blocks * matrices["self_attn.q_proj"][0] * length
    return per_element and rows * length * (per_element * elements + attention)


def mfu(args, operations, seconds):
    """Share of --peak; None where that was not given."""
    return args.peak and operations / seconds / (1e9 * args.peak)


def write_rows(path, vocabulary, rows, length):
    """Full rows of real text, all trained: the committed rows' tokens, one after the other, from the
    start again where they run out, modulo the vocabulary."""
    tokens = []
    for line in ROWS.read_text().splitlines():
        tokens += json.loads(line)["input_ids"]
    with open(path, "w") as file:
        for row in range(rows):
            at = row * length
            ids = [tokens[(at + i) % len(tokens)] % vocabulary for i in range(length)]
            line = {"input_ids": ids, "completion_mask": [1] * length}
            file.write(json.dumps(line) + "\n")


def write_pairs(path, vocabulary, pairs, length):
    """Preference pairs of the same text: prompt and completions are half of `length` each."""
    tokens = []
    for line in ROWS.read_text().splitlines():
        tokens += json.loads(line)["input_ids"]
    half = length // 2
    with open(path, "w") as file:
        for pair in range(pairs):
            part = lambda at: [tokens[(at + i) % len(tokens)] % vocabulary for i in range(half)]
            at = 3 * pair * half
            names = ("prompt_ids", "chosen_ids", "rejected_ids")
            line = {name: part(at + i * half) for i, name in enumerate(names)}
            file.write(json.dumps(line) + "\n")


def halter_command(args, command, mode, model, data, output, rows, length, steps):
    """`halter sft`, or `halter plan` with the same options."""
    words = [args.halter, command, "--json", "--model", model, "--data", data, "--output", output]
    words += ["--batch-size", rows, "--max-steps", steps, "--max-seq-len", length]
    words += ["--learning-rate", "1e-5", "--schedule", "constant", "--no-shuffle"]
    words += ["--lora-rank", 16, "--lora-alpha", 32] if mode.endswith("lora") else []
    # What TRL's DPOTrainer does.
    words += ["--nll-weight", 0, "--mask-formatting", "false"] if command == "dpo" else []
    return [*map(str, words), *shlex.split(args.halter_options)]


def environment(args, extra={}):
    threads = {"OMP_NUM_THREADS": str(args.threads), "RAYON_NUM_THREADS": str(args.threads)}
    return {**os.environ, **threads, **ISA.get(args.isa, {}), **extra}


def run(command, environment, output, steps):
    """Runs a command that writes `output`/metrics.jsonl to its end; what was measured, or an exit.
    `output` is removed: a checkpoint of a large model has more than ten gigabytes."""
    log = output.with_suffix(".log")
    begin = time.monotonic()
    with open(log, "w") as out:
        child = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        metrics, first = output / "metrics.jsonl", None
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if first is None and metrics.exists() and b"\n" in metrics.read_bytes():
                first = time.monotonic() - begin
            if pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.01)
    if child.returncode != 0 or first is None:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"error: `{shlex.join(command)}` ended with {child.returncode}:\n{tail}")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if line.get("seconds")]
    if len(seconds) != steps:
        sys.exit(f"error: `{metrics}` has {len(seconds)} timed steps, expected {steps}")
    shutil.rmtree(output)
    return {
        "seconds": seconds,
        "step_s": statistics.median(seconds[1:]),
        "losses": [line["loss"] for line in lines if line.get("loss") is not None],
        "peak_rss_gib": usage.ru_maxrss / 1048576,
        "first_step_s": first,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }


def other_load():
    """Share of the cores that others kept busy over a second; above 0.1 the figures mean little."""

    def idle():
        fields = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
        return fields[3] + fields[4], sum(fields)

    before = idle()
    time.sleep(1.0)
    after = idle()
    return round(1.0 - (after[0] - before[0]) / max(1, after[1] - before[1]), 2)
