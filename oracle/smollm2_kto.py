"""Ten steps of TRL's KTOTrainer on SmolLM2-135M-Instruct.

    python oracle/smollm2_kto.py rows      oracle/golden/smollm2/kto_rows.jsonl
    python oracle/smollm2_kto.py kto       oracle/golden/smollm2/kto_curves.json
    python oracle/smollm2_kto.py apo_zero_unpaired          ... the same file

Thirty judged answers (LLaMA-Factory's `kto_en_demo`, Apache 2.0): the shortest fifteen of each
label, as `prompt`, `completion` and `label`; TRL renders, tokenizes and mismatches them. Each run
trains on them in file order, three a step, and records of every step what was computed *before* the
update: loss, KL, rewards, summed log-probs, the gradient's norm before clipping; in full precision.
A step without a completion of one label has no figures of it.

f32, lr 2e-5 linear to zero without warm-up, AdamW (0.9, 0.999, eps 1e-8, no weight decay), clipping
at 1.0, beta 0.1, weights 1 and 1.2, the reference held beside the policy.
"""

import json
import sys
import tempfile

from common import GOLDEN, assets, need, set_threads, versions
import torch
from transformers import AutoTokenizer

from smollm2_dpo import load_model, model_folder

ROWS = GOLDEN / "smollm2" / "kto_rows.jsonl"
CURVES = GOLDEN / "smollm2" / "kto_curves.json"
STEPS, ROWS_PER_STEP = 10, 3
RUNS = ("kto", "apo_zero_unpaired")
SETTINGS = dict(
    steps=STEPS,
    rows_per_step=ROWS_PER_STEP,
    learning_rate=2e-5,
    schedule="linear to zero, no warm-up",
    adam=dict(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0),
    max_grad_norm=1.0,
    beta=0.1,
    desirable_weight=1.0,
    undesirable_weight=1.2,
)
KEYS = ["kl"] + [
    f"{a}/{b}" for a in ("rewards", "logps") for b in ("chosen", "rejected")
] + ["rewards/margins"]


def write_rows():
    source = need(assets("llamafactory", "data", "kto_en_demo.json"), "scripts/fetch-assets")
    rows = [
        {"prompt": row["messages"][:-1], "completion": row["messages"][-1:], "label": row["label"]}
        for row in json.loads(source.read_text())
    ]
    rows.sort(key=lambda row: len(json.dumps(row)))
    half = STEPS * ROWS_PER_STEP // 2
    shortest = [[row for row in rows if row["label"] is label][:half] for label in (True, False)]
    rows = [row for pair in zip(*shortest) for row in pair]
    ROWS.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{len(rows)} rows")


def run(name):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = [json.loads(line) for line in need(ROWS, "rows").read_text().splitlines()]
    steps = []

    class Exact(KTOTrainer):
        """Keeps what the log would round."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            for values in self._metrics["train"].values():
                values.clear()
            out = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = (out[0] if return_outputs else out).item()
            metrics = self._metrics["train"]
            steps.append({"loss": loss, **{key: metrics[key][-1] for key in KEYS if metrics[key]}})
            return out

        def log(self, logs, *args, **kwargs):
            if "grad_norm" in logs:
                steps[-1]["grad_norm"] = float(logs["grad_norm"])
            return super().log(logs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as scratch:
        config = KTOConfig(
            output_dir=scratch,
            loss_type=name,
            per_device_train_batch_size=ROWS_PER_STEP,
            max_steps=STEPS,
            max_length=None,
            beta=SETTINGS["beta"],
            desirable_weight=SETTINGS["desirable_weight"],
            undesirable_weight=SETTINGS["undesirable_weight"],
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
            ref_model=load_model(),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model_folder()),
        )
        trainer.train()
    assert len(steps) == STEPS, len(steps)
    file = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    file.update(by="oracle/smollm2_kto.py", versions=versions(), settings=SETTINGS)
    file.setdefault("runs", {})[name] = {"steps": steps}
    CURVES.write_text(json.dumps(file, indent=1) + "\n")
    for step in steps:
        print(name, step)


def main():
    chosen = sys.argv[1:]
    if not chosen or set(chosen) - {"rows", *RUNS}:
        sys.exit(f"usage: smollm2_kto.py {{rows,{','.join(RUNS)}}} ...")
    set_threads(2)
    torch.manual_seed(0)
    for command in chosen:
        write_rows() if command == "rows" else run(command)


if __name__ == "__main__":
    main()
