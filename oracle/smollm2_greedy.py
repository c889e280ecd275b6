"""Greedy continuations of SmolLM2-135M-Instruct by transformers in f32.

    python oracle/smollm2_convert.py && python oracle/smollm2_greedy.py

Writes oracle/golden/smollm2/greedy.json: for each of fifty prompts, thirty conversations and twenty
plain texts, its token ids and up to 16 new ids (fewer where the end of the turn came first: it is
the last id then). `tie` is the first step at which the two largest logits are less than 1e-3 apart,
where another order of summation may choose the other; from there on the ids say nothing.
"""

import json

from common import GOLDEN, assets, need, set_threads, versions
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 16
TIE = 1e-3
SUMMARIZE = """Summarize this report in one sentence. The town of Millbrook opened its new public \
library on Saturday after four years of construction. The building holds more than sixty thousand \
books, a reading garden, a small theatre and a workshop where visitors may use sewing machines and \
printers. The mayor thanked the three hundred volunteers who had collected money with concerts, bake \
sales and a yearly run around the lake. Children received the first library cards, and an hour \
before closing time every copy of the local cookbook had been borrowed. The old library, a wooden \
house beside the railway station, is going to be a museum of the region's history from next spring."""
CONVERSATIONS = [
    [("user", "Hi")],
    [("user", "What is the capital of France?")],
    [("user", "Explain in two sentences why the sky is blue.")],
    [("user", "Write a short poem about a llama in the mountains.")],
    [("user", "Tom has 12 apples and buys 7 more. How many apples does he have now?")],
    [("system", "You are a pirate."), ("user", "Tell me about your ship.")],
    [("system", ""), ("user", "Who are you?")],
    [("system", "Answer in one word."), ("user", "Which is the largest planet?")],
    [("user", "List three healthy breakfast ideas.")],
    [
        ("user", "Who wrote Romeo and Juliet?"),
        ("assistant", "William Shakespeare wrote it."),
        ("user", "Name another of his plays and say what it is about."),
    ],
    [("user", "Translate to French: Good morning, my friends.")],
    [("user", "Write a Python function that returns the factorial of n.")],
    [("user", "What happened in 1969? Answer with the date, e.g. 1969-07-20.")],
    [("user", "Give me a recipe for pancakes.")],
    [("user", "What is 17 * 23?")],
    [("user", "Name the four seasons, each on a line of its own.")],
    [("user", "Why do cats purr?")],
    [("user", 'Answer with JSON: {"city": "…", "country": "…"} for the Eiffel tower.')],
    [("user", "Was ist der Unterschied zwischen Honig und Marmelade?")],
    [("user", "¿Cuántos días tiene un año bisiesto?")],
    [("user", "Rewrite politely: give me the keys now!")],
    [("user", "Which word is the odd one out: apple, pear, hammer, plum? Say why.")],
    [("user", "A train leaves at 14:35 and arrives at 17:10. How long does it take?")],
    [("user", "Write a haiku about rain 🌧️ and end it with an emoji.")],
    [("user", "Fix the grammar:\n\nShe don't likes going to school because of he are tired.")],
    [("user", "```rust\nfn main() {\n    let x: i32 = \"5\";\n}\n```\n\nWhy does this not compile?")],
    [
        ("system", "You tutor children in arithmetic."),
        ("user", "What is 8 + 5?"),
        ("assistant", "Count five on from eight: 9, 10, 11, 12, 13. So 8 + 5 = 13."),
        ("user", "And 13 - 6?"),
        ("assistant", "Take three away to get 10, then three more: 13 - 6 = 7."),
        ("user", "Now one that is hard, please."),
    ],
    [("user", SUMMARIZE)],
    [("user", "List ten words that rhyme with " + ", ".join(["moon", "tree", "light"] * 12) + ".")],
    [("user", "Is it true that bananas are berries? Begin with yes or no.")],
]
TEXTS = [
    "Once upon a time, there",
    "The quick brown fox jumps",
    "1, 2, 3, 4, 5,",
    "def fibonacci(n):\n    ",
    "Dear Sir or Madam,\n\nI am writing to",
    "The main causes of the First World War were",
    "# Installation\n\nTo install the package, run the following",
    "Water boils at 100 degrees Celsius, which is",
    "SELECT name, COUNT(*) FROM orders WHERE",
    "In this paper, we propose a new method for the classification of",
]
# Tokens of plain prompts that are cut out of the rows, some of them around a whole page of the cache.
LENGTHS = [15, 16, 17, 24, 31, 48, 65, 100, 150, 400]


def plain_cuts():
    """Of the rows' tokens, one row after the other, without the first turn and without the marks of
    turns."""
    tokens = []
    for line in (GOLDEN / "smollm2" / "sft_rows.jsonl").read_text().splitlines():
        ids = json.loads(line)["input_ids"]
        tokens += [token for token in ids[ids.index(2) :] if token > 2]
    for length in LENGTHS:
        yield tokens[:length]
        tokens = tokens[length:]


def prompts(tokenizer):
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in turns]
        yield ids(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    yield from map(ids, TEXTS)
    yield from plain_cuts()


def main():
    set_threads(2)
    folder = need(assets("smollm2-f32"), "oracle/smollm2_convert.py")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt in prompts(tokenizer):
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = out.sequences[0, len(prompt) :].tolist()
        best = [step[0].topk(2).values for step in out.logits]
        gaps = [(top[0] - top[1]).item() for top in best]
        tie = next((step for step, gap in enumerate(gaps) if gap < TIE), None)
        print(f"{len(prompt):3} {min(gaps):.4f} {tie} {tokenizer.decode(new)!r}", flush=True)
        rows.append({"prompt_ids": prompt, "new_ids": new, "tie": tie})
    head = json.dumps({"by": "oracle/smollm2_greedy.py", "versions": versions()})
    # A row a line.
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path = GOLDEN / "smollm2" / "greedy.json"
    path.write_text(f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')
    print(f"{len(rows)} rows, {sum(row['tie'] is not None for row in rows)} with a tie")


if __name__ == "__main__":
    main()
