"""Ten steps of TRL's GKDTrainer: SmolLM2-135M-Instruct teaches itself without every third block.

    python oracle/smollm2_distill.py [forward_kl jsd reverse_kl]     golden/smollm2/distill_curves.json

Twenty rows of `sft_rows.jsonl` in file order, two a step, off-policy (lambda 0). The student is the
teacher with blocks 2, 5, 8, … left out. Recorded before each update: the loss and the gradient's norm
before clipping, in full precision. TRL's trainer compares at temperature 1 whatever it is told.

f32, lr 2e-5 linear to zero without warm-up, AdamW (0.9, 0.999, eps 1e-8, no weight decay), clipping at
1.0.
"""

import json
import sys
import tempfile

from common import GOLDEN, assets, need, set_threads, versions
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = GOLDEN / "smollm2" / "sft_rows.jsonl"
CURVES = GOLDEN / "smollm2" / "distill_curves.json"
STEPS, ROWS_PER_STEP = 10, 2
RUNS = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}
SETTINGS = dict(
    steps=STEPS,
    rows_per_step=ROWS_PER_STEP,
    learning_rate=2e-5,
    schedule="linear to zero, no warm-up",
    adam=dict(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0),
    max_grad_norm=1.0,
    blocks_left_out="every third, from the third",
)


def model_folder():
    return need(assets("smollm2-f32"), "oracle/smollm2_convert.py")


def load_model():
    return AutoModelForCausalLM.from_pretrained(
        model_folder(), dtype=torch.float32, attn_implementation="sdpa"
    )


def load_student():
    model = load_model()
    kept = [block for at, block in enumerate(model.model.layers) if at % 3 != 2]
    for at, block in enumerate(kept):
        block.self_attn.layer_idx = at
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    pad = lambda values, with_: values + [with_] * (longest - len(values))
    ids = torch.tensor([pad(row["input_ids"], 2) for row in rows])
    seen = torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows])
    trained = torch.tensor([pad(row["completion_mask"], 0) for row in rows]).bool()
    # No completion is generated from the prompts.
    prompts = dict(prompts=ids[:, :1], prompt_attention_mask=seen[:, :1])
    return dict(input_ids=ids, attention_mask=seen, labels=ids.masked_fill(~trained, -100), **prompts)


def run(name):
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = [json.loads(line) for line in ROWS.read_text().splitlines()][: STEPS * ROWS_PER_STEP]
    steps = []

    class Exact(GKDTrainer):
        """Takes the rows as they are, and keeps what the log would round."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            out = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            steps.append({"loss": (out[0] if return_outputs else out).item()})
            return out

        def log(self, logs, *args, **kwargs):
            if "grad_norm" in logs:
                steps[-1]["grad_norm"] = float(logs["grad_norm"])
            return super().log(logs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as scratch:
        config = GKDConfig(
            output_dir=scratch,
            per_device_train_batch_size=ROWS_PER_STEP,
            max_steps=STEPS,
            lmbda=0.0,
            beta=RUNS[name],
            learning_rate=SETTINGS["learning_rate"],
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Exact(
            model=load_student(),
            teacher_model=load_model(),
            args=config,
            data_collator=collate,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model_folder()),
        )
        trainer.train()
    assert len(steps) == STEPS, len(steps)
    file = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    file.update(by="oracle/smollm2_distill.py", versions=versions(), settings=SETTINGS)
    file.setdefault("runs", {})[name] = {"beta": RUNS[name], "steps": steps}
    CURVES.write_text(json.dumps(file, indent=1) + "\n")
    for step in steps:
        print(name, step)


def main():
    chosen = sys.argv[1:] or list(RUNS)
    if set(chosen) - set(RUNS):
        sys.exit(f"usage: smollm2_distill.py {{{','.join(RUNS)}}} ...")
    set_threads(2)
    torch.manual_seed(0)
    for name in chosen:
        run(name)


if __name__ == "__main__":
    main()
