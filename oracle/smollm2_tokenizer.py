"""Token ids of SmolLM2's tokenizer as transformers rebuilds it from the GGUF file.

    python oracle/smollm2_tokenizer.py

reads smollm2/SmolLM2-135M-Instruct.Q4_1.gguf under HALTER_ASSETS (default: assets/) and writes
oracle/golden/smollm2_tokenizer.json. Needs transformers and gguf.

One correction: transformers rebuilds every `gpt2` tokenizer with GPT-2's own splitting, while
SmolLM2's (`tokenizer.ggml.pre` = `smollm`) takes digits one by one first. That changes the ids of
rare numerals only; `changed` lists the texts for which it does.
"""

import json
import os
from pathlib import Path

import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("HALTER_ASSETS", ROOT / "assets"))

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "The capital of France is Paris.",
    "It's what they've said, and I'm sure we'll see: he'd go.",
    "12345 + 678 = 13023",
    "In 2024, 3.14159 was rounded to 3.14 (about 0.05% off).",
    "a1b2c3 x10^9 7th 1st",
    "   leading and trailing   ",
    "tabs\tand\ttabs\t\there",
    "line one\nline two\n\nline four\r\nwindows",
    "\n\n\n",
    "    def f(x):\n        return x ** 2  # square\n",
    'for (int i = 0; i < 10; ++i) { printf("%d\\n", i); }',
    "naïve café déjà vu Ærøskøbing",
    "Straße, Größe, Übermut",
    "Привет, мир! Как дела?",
    "東京は日本の首都です。",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "🦙 llamas 👩‍👩‍👧‍👦 and 🇫🇷 flags",
    "½ cup, x² + y³, №5, Ⅷ, ٣٤٥",
    "e\u0301 combining and \u00e9 composed",
    "zero\u200bwidth and nbsp\u00a0here",
    "https://example.org/a_b-c?d=e&f=%20#g",
    "ALLCAPS lowercase MixedCase snake_case kebab-case",
    "!!!???...---===***///\\\\\\|||",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><repo_name>halter<file_sep>src/lib.rs",
    "text<|im_end|>glued<|im_end|> spaced",
    "<|im_start|> almost <|im_star|> <im_end>",
    "Question: Lena has 7 apples and buys 5 more. How many has she now?\nAnswer: 12",
    "\x00\x01\x7f control",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
]


def main() -> None:
    folder = ASSETS / "smollm2"
    tokenizer = AutoTokenizer.from_pretrained(
        folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    as_loaded = [tokenizer(text).input_ids for text in TEXTS]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    ids = [tokenizer(text).input_ids for text in TEXTS]
    golden = {
        "made_by": f"oracle/smollm2_tokenizer.py, transformers {transformers.__version__}",
        "chat_template": tokenizer.chat_template,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "unk_token": tokenizer.unk_token,
        "pad_token": tokenizer.pad_token,
        "changed": [t for t, a, b in zip(TEXTS, as_loaded, ids) if a != b],
        "cases": [{"text": text, "ids": own} for text, own in zip(TEXTS, ids)],
    }
    path = ROOT / "oracle" / "golden" / "smollm2_tokenizer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(golden, ensure_ascii=True, indent=1)
    # One case a line.
    for inner in ("\n    ", "\n   "):
        lines = lines.replace(inner, " ")
    lines = lines.replace("\n  }", " }")
    assert json.loads(lines) == golden
    path.write_text(lines + "\n")
    print(f"{len(TEXTS)} texts -> {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
