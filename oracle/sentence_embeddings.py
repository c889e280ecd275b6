"""Sentence embeddings as sentence-transformers computes them: BERT, mean of the tokens, length one.

    python oracle/sentence_embeddings.py

writes oracle/golden/bert: a tiny BERT of random weights as transformers saves it, a WordPiece tokenizer
of letters and a few words, the files by which sentence-transformers knows limit and pooling, and
embeddings.json with the embedding of each of TEXTS, one text at a time, in f64 rounded to f32. With
$HALTER_ASSETS/all-minilm-l6-v2 (scripts/fetch-assets minilm) there, minilm.json holds those of
sentence-transformers/all-MiniLM-L6-v2.
"""

import json
import shutil

from common import GOLDEN, assets, set_threads, versions
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

CASE = GOLDEN / "bert"
LIMIT = 24
TEXTS = [
    "The cat sat on the mat.",
    "A cat is sitting on a mat.",
    "How do I solve a quadratic equation?",
    "hello",
    "",
    "A text that is far longer than the limit, so that its end is cut off: " + "over and over " * 90,
    "Größe, 数学 and ümlauts!",
]


def tokenizer():
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["the", "cat", "mat", "sat", "is", "on", "over", "and", "text", "hello", ".", ",", "?", "!", ":"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters), *words]
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def tiny():
    torch.manual_seed(11)
    config = BertConfig(
        vocab_size=71, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, hidden_act="gelu", initializer_range=0.3,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                value.add_(0.1 * torch.randn_like(value))
    return model


def embed(model, made, limit, text):
    made.enable_truncation(limit)
    made.no_padding()
    ids = torch.tensor([made.encode(text).ids])
    with torch.no_grad():
        mean = model(input_ids=ids).last_hidden_state[0].mean(dim=0)
    return torch.nn.functional.normalize(mean, dim=0).float().tolist()


def write(name, model, made, limit):
    model = model.double()
    found = {
        "versions": versions(),
        "texts": TEXTS,
        "embeddings": [embed(model, made, limit, text) for text in TEXTS],
    }
    (CASE / name).write_text(json.dumps(found, ensure_ascii=False) + "\n")


def main():
    set_threads(1)
    shutil.rmtree(CASE, ignore_errors=True)
    model, made = tiny(), tokenizer()
    model.save_pretrained(CASE)
    config = json.loads((CASE / "config.json").read_text())
    config.pop("transformers_version", None)
    (CASE / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    made.save(str(CASE / "tokenizer.json"))
    (CASE / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LIMIT}) + "\n")
    (CASE / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (CASE / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n")
    write("embeddings.json", model, made, LIMIT)
    real = assets("all-minilm-l6-v2")
    if not real.exists():
        print(f"skipped: `{real}` is missing (scripts/fetch-assets minilm)")
        return
    limit = json.loads((real / "sentence_bert_config.json").read_text())["max_seq_length"]
    made = Tokenizer.from_file(str(real / "tokenizer.json"))
    write("minilm.json", BertModel.from_pretrained(real, add_pooling_layer=False).eval(), made, limit)


if __name__ == "__main__":
    main()
