"""Golden completion masks, and the tiny tokenizers that the text tests use.

Usage: python oracle/masks.py   (needs transformers, tokenizers and trl; no weights)
Trains a byte-level BPE of at most 600 tokens on the sentences below, writes it in two shapes (ChatML, and
Llama 3 with BOS in the post-processor) under core/tests/fixtures/, and writes
oracle/golden/masks.json: token ids and assistant masks that transformers gives for templates with
`{% generation %}` blocks (our own and TRL's training templates), and TRL's rows of plain text.
"""

import json
import pathlib

import tokenizers
import transformers
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from trl.data_utils import common_prefix_length

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "core/tests/fixtures"
TRL_TEMPLATES = pathlib.Path(trl.__file__).parent / "chat_templates"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. A halter is what a llama is trained with.",
    "user assistant system What is the capital of France? The capital of France is Paris.",
    "Sam has 12 apples and gives 5 to Ann. 12 - 5 = 7. Sam has 7 apples left.\n\nThe answer is 7.",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, i + 1))\n",
    "Grüße aus Zürich! 日本語のテキスト。 Ça va très bien, merci — et toi?",
    '{"name": "get_weather", "arguments": {"city": "Bern", "days": [1, 2, 3]}} <think>\n\n</think>\n\n',
]
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<|eom_id|>", "<|python_tag|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]


# How Llama 3 parts text before BPE: line breaks stay together, which its header relies on.
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def train(pre_tokenizer):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  special_tokens=[AddedToken(token, special=True) for token in SPECIAL], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def write(tokenizer, name, config):
    folder = FIXTURES / name
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **config)


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CONVERSATIONS = [
    chat(("user", "What is 2 + 2?"), ("assistant", "4.")),
    chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "The capital?"), ("assistant", "Paris.")),
    chat(("user", "  spaces  "), ("assistant", "  lead\n\nand trail \n")),
    chat(("user", "日本語 🦙"), ("assistant", "🦙🦙 Grüße — e\u0301\u00a0x")),
    chat(("user", ""), ("assistant", "")),
    chat(("user", "a"), ("assistant", "\n"), ("user", "\n\nb"), ("assistant", "b b b"), ("user", "assistant\n"), ("assistant", "user\n")),
    chat(("user", "code"), ("assistant", "```\nfor i in range(10):\n    print(i)\n```\n")),
    chat(("user", "same"), ("assistant", "same"), ("user", "same"), ("assistant", "same")),
]
PLAIN = [
    {"prompt": "What is 2 + 2?", "completion": " 4."},
    {"prompt": "The capital of France is", "completion": "Paris"},
    {"prompt": "Grüße ", "completion": "🦙 aus Zürich"},
    {"prompt": "Sam has 1", "completion": "2 apples"},
    {"prompt": "", "completion": "Only a completion."},
]
TEXTS = ["The quick brown fox.", " lead and trail \n", "日本語 🦙"]


def main():
    base = train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    chatml_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    chatml = write(base, "tiny_chatml", chatml_config)
    bos = "<|begin_of_text|>"
    base = train(pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]))
    base.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, base.token_to_id(bos))]),
    ])
    llama_config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": "<|eot_id|>"}
    llama = write(base, "tiny_llama3", llama_config)

    ours = {name: (ROOT / f"core/tests/templates/{name}.jinja").read_text() for name in ("chatml_marked", "llama3_marked")}
    theirs = {name: (TRL_TEMPLATES / f"{name}.jinja").read_text() for name in ("llama3_training", "qwen2_5_training", "qwen3_training")}
    masks = []
    for name, source in {**ours, **theirs}.items():
        tokenizer = llama if "llama" in name else chatml
        for messages in CONVERSATIONS:
            out = tokenizer.apply_chat_template(messages, chat_template=source, return_dict=True, return_assistant_tokens_mask=True)
            masks.append({"template": name, "tokenizer": "tiny_llama3" if tokenizer is llama else "tiny_chatml",
                          "messages": messages, "input_ids": out["input_ids"], "mask": out["assistant_masks"]})
    plain, texts = [], []
    for name, tokenizer in (("tiny_chatml", chatml), ("tiny_llama3", llama)):
        for row in PLAIN:  # SFTTrainer's tokenize_fn, prompt-completion case
            prompt_ids = tokenizer(row["prompt"])["input_ids"]
            input_ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
            length = common_prefix_length(prompt_ids, input_ids)
            plain.append({"tokenizer": name, **row, "input_ids": input_ids, "mask": [int(i >= length) for i in range(len(input_ids))]})
        for text in TEXTS:
            texts.append({"tokenizer": name, "text": text, "input_ids": tokenizer(text + tokenizer.eos_token)["input_ids"]})
    golden = {
        "made_by": "oracle/masks.py",
        "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__, "trl": trl.__version__},
        "trl_templates": theirs,
        "masks": masks,
        "plain": plain,
        "texts": texts,
    }
    out = ROOT / "oracle/golden/masks.json"
    out.write_text(json.dumps(golden, ensure_ascii=False) + "\n")
    print(f"{len(masks)} masks, {len(plain)} prompt/completion rows, {len(texts)} texts; vocabulary {len(chatml)}")


if __name__ == "__main__":
    main()
