"""Whether a reward model that halter exported gives transformers the scores that halter gives it.

    python oracle/check_reward.py EXPORT SCORES.json

SCORES.json is a list of {"input_ids": [...], "score": x}, as `examples/score.rs` writes it. Rows go
through the model alone and again as one padded batch. Exits 1 unless every score is the same.
"""

import json
import sys

from checks import Checker, quiet
import torch
from transformers import AutoModelForSequenceClassification


@torch.no_grad()
def main():
    if len(sys.argv) != 3:
        sys.exit("usage: check_reward.py EXPORT SCORES.json")
    quiet()
    folder, rows = sys.argv[1], json.load(open(sys.argv[2]))
    checker = Checker(1e-5)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        wrong = sorted(map(str, info[kind]))
        checker.expect(not wrong, f"`{folder}` has {kind.replace('_', ' ')}: {wrong[:4]}")
    checker.expect(model.config.num_labels == 1, f"{model.config.num_labels} labels")
    checker.expect(type(model).__name__.endswith("ForSequenceClassification"), type(model).__name__)
    model.eval()
    ours = torch.tensor([row["score"] for row in rows])
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    alone = torch.stack([model(input_ids=row[None], use_cache=False).logits[0, 0] for row in ids])
    checker.close("each row alone", ours, alone)
    padding = model.config.pad_token_id
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(row) for row in ids])
    mask = (torch.arange(batch.shape[1])[None] < lengths[:, None]).long()
    padded = model(input_ids=batch, attention_mask=mask, use_cache=False).logits[:, 0]
    checker.close("as a padded batch", ours, padded)
    checker.finish()


if __name__ == "__main__":
    main()
