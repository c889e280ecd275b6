"""Ten steps of TRL's RewardTrainer on SmolLM2-135M-Instruct.

    python oracle/smollm2_reward.py plain margin-centred

writes oracle/golden/smollm2/reward_curves.json. Each run trains on the pairs of `dpo_rows.jsonl`
(see smollm2_dpo.py), prompt and completion as one row, in file order, two pairs a step, and records of
every step what was computed *before* the update: loss, TRL's metrics and the gradient's norm before
clipping; in full precision. `margin-centred` has a margin of 0, 0.25, 0.5, 0.75, 0, ... and a centring
coefficient of 0.01.

The value head begins as score[i] = ((7919 i) mod 2001 - 1000) / 40000, which any language repeats to
the bit. f32, lr 2e-5 linear to zero without warm-up, AdamW (0.9, 0.999, eps 1e-8, no weight decay),
clipping at 1.0.
"""

import json
import sys
import tempfile

from common import GOLDEN, need, set_threads, versions
from smollm2_dpo import PAIRS_PER_STEP, ROWS, SETTINGS, STEPS, model_folder
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

CURVES = GOLDEN / "smollm2" / "reward_curves.json"
RUNS = {
    "plain": dict(center_rewards_coefficient=None, margin=False),
    "margin-centred": dict(center_rewards_coefficient=0.01, margin=True),
}
KEYS = ("min_reward", "mean_reward", "max_reward", "accuracy", "margin")


def score(hidden):
    """The value head's first weights, (1, hidden)."""
    index = torch.arange(hidden, dtype=torch.float64)
    return (((7919 * index) % 2001 - 1000) / 40000).float()[None]


def load_model():
    model = AutoModelForSequenceClassification.from_pretrained(
        model_folder(), num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
    )
    with torch.no_grad():
        model.score.weight.copy_(score(model.config.hidden_size))
    return model


def pairs(with_margin):
    for index, line in enumerate(need(ROWS, "smollm2_dpo.py rows").read_text().splitlines()):
        row = json.loads(line)
        pair = {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")}
        if with_margin:
            pair["margin"] = 0.25 * (index % 4)
        yield pair


def run(name):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    steps = []

    class Exact(RewardTrainer):
        """Keeps what the log would round."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            out = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = (out[0] if return_outputs else out).item()
            seen = {key: self._metrics["train"][key][-1] for key in KEYS}
            steps.append({"loss": loss, **seen})
            return out

        def log(self, logs, *args, **kwargs):
            if "grad_norm" in logs:
                steps[-1]["grad_norm"] = float(logs["grad_norm"])
            return super().log(logs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as scratch:
        config = RewardConfig(
            output_dir=scratch,
            per_device_train_batch_size=PAIRS_PER_STEP,
            max_steps=STEPS,
            max_length=None,
            center_rewards_coefficient=RUNS[name]["center_rewards_coefficient"],
            learning_rate=SETTINGS["learning_rate"],
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Exact(
            model=load_model(),
            args=config,
            train_dataset=Dataset.from_list(list(pairs(RUNS[name]["margin"]))),
            processing_class=AutoTokenizer.from_pretrained(model_folder()),
        )
        trainer.train()
    assert len(steps) == STEPS, len(steps)
    file = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    settings = {key: value for key, value in SETTINGS.items() if key != "beta"}
    file.update(by="oracle/smollm2_reward.py", versions=versions(), settings=settings)
    file.setdefault("runs", {})[name] = {**RUNS[name], "steps": steps}
    CURVES.write_text(json.dumps(file, indent=1) + "\n")
    for step in steps:
        print(name, step)


def main():
    chosen = sys.argv[1:]
    if not chosen or set(chosen) - set(RUNS):
        sys.exit(f"usage: smollm2_reward.py {{{','.join(RUNS)}}} ...")
    set_threads(2)
    torch.manual_seed(0)
    for name in chosen:
        run(name)


if __name__ == "__main__":
    main()
