"""Ten steps of TRL's DPOTrainer on SmolLM2-135M-Instruct, for several losses.

    python oracle/smollm2_dpo.py rows                                    .../dpo_rows.jsonl
    python oracle/smollm2_dpo.py sigmoid ipo hinge sigmoid-sft sync      .../dpo_curves.json

both files below oracle/golden/smollm2.

Twenty preference pairs (LLaMA-Factory's `dpo_en_demo`, Apache 2.0), the shortest ones, rendered with
the model's chat template and tokenized here once: `prompt_ids` (with the generation prompt),
`chosen_ids` and `rejected_ids` (with all that the template puts behind an answer). Each run trains on
them in file order, two pairs a step, and records of every step what was computed *before* the update:
loss, rewards, summed log-probs, the gradient's norm before clipping; in full precision.

f32, lr 2e-5 linear to zero without warm-up, AdamW (0.9, 0.999, eps 1e-8, no weight decay), clipping at
1.0, beta 0.1, the reference held beside the policy; in `sync` it takes 0.6 of the policy after every
third step (TR-DPO).
"""

import json
import sys
import tempfile

from common import GOLDEN, assets, need, set_threads, versions
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = GOLDEN / "smollm2" / "dpo_rows.jsonl"
CURVES = GOLDEN / "smollm2" / "dpo_curves.json"
STEPS, PAIRS_PER_STEP = 10, 2
RUNS = {
    "sigmoid": dict(loss_type=["sigmoid"]),
    "ipo": dict(loss_type=["ipo"]),
    "hinge": dict(loss_type=["hinge"]),
    "sigmoid-sft": dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]),
    "sync": dict(
        loss_type=["sigmoid"],
        sync_ref_model=True,
        ref_model_mixup_alpha=0.6,
        ref_model_sync_steps=3,
    ),
}
SETTINGS = dict(
    steps=STEPS,
    pairs_per_step=PAIRS_PER_STEP,
    learning_rate=2e-5,
    schedule="linear to zero, no warm-up",
    adam=dict(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0),
    max_grad_norm=1.0,
    beta=0.1,
)


def model_folder():
    return need(assets("smollm2-f32"), "oracle/smollm2_convert.py")


def load_model():
    return AutoModelForCausalLM.from_pretrained(
        model_folder(), dtype=torch.float32, attn_implementation="sdpa"
    )


def tokenize(tokenizer, pair):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    prompt = [{"role": roles[m["from"]], "content": m["value"]} for m in pair["conversations"]]

    def ids(messages, **options):
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    head = ids(prompt, add_generation_prompt=True)
    row = {"prompt_ids": head}
    for side in ("chosen", "rejected"):
        answer = {"role": "assistant", "content": pair[side]["value"]}
        whole = ids([*prompt, answer])
        if whole[: len(head)] != head:
            return None
        row[f"{side}_ids"] = whole[len(head) :]
    return row


def write_rows():
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    source = need(assets("llamafactory", "data", "dpo_en_demo.json"), "scripts/fetch-assets")
    rows = [tokenize(tokenizer, pair) for pair in json.loads(source.read_text())]
    rows = [row for row in rows if row and row["chosen_ids"] != row["rejected_ids"]]
    rows.sort(key=lambda row: sum(map(len, row.values())))
    rows = rows[: STEPS * PAIRS_PER_STEP]
    ROWS.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    print(f"{len(rows)} pairs, {sum(sum(map(len, row.values())) for row in rows)} tokens")


def run(name):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in need(ROWS, "rows").read_text().splitlines()]
    steps = []

    class Exact(DPOTrainer):
        """Takes the rows as they are, and keeps what the log would round."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            for values in self._metrics["train"].values():
                values.clear()
            out = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = (out[0] if return_outputs else out).item()
            keys = [f"{a}/{b}" for a in ("rewards", "logps") for b in ("chosen", "rejected")]
            keys += ["rewards/margins", "rewards/accuracies"]
            seen = {key: self._metrics["train"][key][-1] for key in keys}
            steps.append({"loss": loss, **seen})
            return out

        def log(self, logs, *args, **kwargs):
            if "grad_norm" in logs:
                steps[-1]["grad_norm"] = float(logs["grad_norm"])
            return super().log(logs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as scratch:
        config = DPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=PAIRS_PER_STEP,
            max_steps=STEPS,
            max_length=None,
            beta=SETTINGS["beta"],
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
            **RUNS[name],
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
    file.update(by="oracle/smollm2_dpo.py", versions=versions(), settings=SETTINGS)
    file.setdefault("runs", {})[name] = {**RUNS[name], "steps": steps}
    CURVES.write_text(json.dumps(file, indent=1) + "\n")
    for step in steps:
        print(name, step)


def main():
    chosen = sys.argv[1:]
    if not chosen or set(chosen) - {"rows", *RUNS}:
        sys.exit(f"usage: smollm2_dpo.py {{rows,{','.join(RUNS)}}} ...")
    set_threads(2)
    torch.manual_seed(0)
    for command in chosen:
        write_rows() if command == "rows" else run(command)


if __name__ == "__main__":
    main()
