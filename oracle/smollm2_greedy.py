"""Greedy continuations of SmolLM2-135M-Instruct by transformers in f32.

    python oracle/smollm2_convert.py && python oracle/smollm2_greedy.py

Writes oracle/golden/smollm2/greedy.json: for each of ten conversations the rendered prompt, its
token ids, up to 32 new ids (fewer where the end of the turn came first: it is the last id then),
and the gap in logits between the best and the second token of each step. A gap below about 1e-3
would be a tie that another order of summation may break the other way; the script refuses those.
"""

import json
import sys

from common import GOLDEN, assets, need, set_threads, versions
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 32
SMALLEST_GAP = 2e-3
CONVERSATIONS = [
    [("user", "What is the capital of France?")],
    [("user", "Explain in two sentences why the sky is blue.")],
    [("user", "Write a short poem about a llama in the mountains.")],
    [("user", "Tom has 12 apples and buys 7 more. How many apples does he have now?")],
    [("system", "You are a pirate."), ("user", "Tell me about your ship.")],
    [("user", "List three healthy breakfast ideas.")],
    [
        ("user", "Who wrote Romeo and Juliet?"),
        ("assistant", "William Shakespeare wrote it."),
        ("user", "Name another of his plays and say what it is about."),
    ],
    [("user", "Translate to French: Good morning, my friends.")],
    [("user", "Write a Python function that returns the factorial of n.")],
    [("user", "What happened in 1969? Answer with the date, e.g. 1969-07-20.")],
]


def main():
    set_threads(2)
    folder = need(assets("smollm2-f32"), "oracle/smollm2_convert.py")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = out.sequences[0, ids.shape[1] :]
        best = [step[0].topk(2).values for step in out.logits]
        gaps = [(top[0] - top[1]).item() for top in best]
        print(f"{min(gaps):.4f} {tokenizer.decode(new)!r}", flush=True)
        if min(gaps) < SMALLEST_GAP:
            sys.exit(f"near tie (gap {min(gaps):.1e}) in {messages[-1]['content']!r}")
        rows.append(
            {
                "messages": messages,
                "prompt": text,
                "prompt_ids": ids[0].tolist(),
                "new_ids": new.tolist(),
                "new_text": tokenizer.decode(new),
                "top2_gaps": [round(gap, 5) for gap in gaps],
            }
        )
    out = {"by": "oracle/smollm2_greedy.py", "versions": versions(), "rows": rows}
    path = GOLDEN / "smollm2" / "greedy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(rows)} rows; smallest gap {min(min(r['top2_gaps']) for r in rows)}")


if __name__ == "__main__":
    main()
