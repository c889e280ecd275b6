"""transformers' generate: MODEL PROMPTS TOKENS COMPLETIONS NEW THREADS. stdout: JSON, new tokens a
second of three repetitions, after one that warms up."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

prompts, tokens, completions, new, threads = map(int, sys.argv[2:])
torch.set_num_threads(threads)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
# As examples/generate.rs.
ids = [[1000 + (i * 7919 + row * 31) % 40_000 for i in range(tokens)] for row in range(prompts)]
ids = torch.tensor(ids)
options = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=completions)


def generate(new):
    start = time.perf_counter()
    mask = torch.ones_like(ids)
    limits = dict(min_new_tokens=new, max_new_tokens=new)
    out = model.generate(input_ids=ids, attention_mask=mask, **options, **limits)
    assert out.shape == (prompts * completions, tokens + new), out.shape
    return out[:, tokens:].numel() / (time.perf_counter() - start)


generate(4)
print(json.dumps([generate(new) for _ in range(3)]))
