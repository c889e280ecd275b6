"""Golden tokens of real tokenizers: a rendered chat and a plain text, by transformers.

Usage: python oracle/real_tokenizers.py   (needs transformers; reads the fetched tokenizers
$HALTER_ASSETS/tokenizers/NAME/tokenizer.json, default assets/; leaves out what is not there)
Writes oracle/golden/real_tokenizers.json, which holds token ids only.
"""

import json
import os
import pathlib

import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
ASSETS = pathlib.Path(os.environ.get("HALTER_ASSETS") or ROOT / "assets") / "tokenizers"

CHAT = [
    {"role": "user", "content": "What is the capital of France?  日本語 🦙"},
    {"role": "assistant", "content": " Paris.\n\nIt's 12,345 km² away \n"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]
TEXT = "  a b\n\n\tdef f(x):\n    return x ** 2  # 3.14159 Zürich e\u0301 日本 🦙🦙<unk>"
LLAMA2 = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
QWEN = {"eos_token": "<|im_end|>"}
MODELS = {  # folder: (template of core/tests/templates, special tokens)
    "llama2": ("llama2", LLAMA2),
    "llama3_1": ("llama3", LLAMA3),
    "qwen2_5": ("qwen2_5", QWEN),
    "qwen3": ("qwen3", QWEN),
    "mistral_nemo": ("mistral_nemo", LLAMA2),
}


def main():
    rows = []
    for name, (template, special) in MODELS.items():
        path = ASSETS / name / "tokenizer.json"
        if not path.exists():
            print(f"left out: {name}, not in assets")
            continue
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), **special)
        source = (ROOT / f"core/tests/templates/{template}.jinja").read_text()
        chat = tokenizer.apply_chat_template(CHAT, chat_template=source, return_dict=True)["input_ids"]
        rows.append({"name": name, "template": template, "special": special, "chat": chat, "text": tokenizer(TEXT)["input_ids"]})
    golden = {
        "made_by": "oracle/real_tokenizers.py",
        "versions": {"transformers": transformers.__version__},
        "messages": CHAT,
        "text": TEXT,
        "rows": rows,
    }
    (ROOT / "oracle/golden/real_tokenizers.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")
    print(f"{len(rows)} tokenizers")


if __name__ == "__main__":
    main()
