"""TRL's SFTTrainer on the same rows in the same order, in f32 (its default is bf16 autocast)."""

import time

import measure

args = measure.arguments(__doc__)

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """A step lasts from its first microbatch to the update; its loss comes with the log."""

    def __init__(self, meter):
        self.meter, self.begin, self.seconds = meter, None, None

    def on_step_begin(self, arguments, state, control, **others):
        self.begin = time.perf_counter()

    def on_step_end(self, arguments, state, control, **others):
        self.seconds = time.perf_counter() - self.begin

    def on_log(self, arguments, state, control, logs=None, **others):
        if logs and "loss" in logs:
            self.meter.step(self.seconds, float(logs["loss"]))


def peft_config():
    if not args.lora:
        return None
    from peft import LoraConfig

    return LoraConfig(**measure.LORA)


def main():
    torch.set_num_threads(args.threads)
    rows = measure.read_rows(args)
    columns = [{name: row[name] for name in ("input_ids", "completion_mask")} for row in rows]
    longest = max(len(row["input_ids"]) for row in rows)
    tokens = sum(len(row["input_ids"]) for row in rows[: args.batch_size])
    mode = "lora" if args.lora else "full"
    meter = measure.Meter(f"trl_{mode}", args, tokens)
    config = SFTConfig(
        output_dir=str(args.output / "trainer"),
        per_device_train_batch_size=args.batch_size,
        max_steps=args.max_steps,
        max_length=longest,
        learning_rate=args.learning_rate,
        train_sampling_strategy="sequential",
        completion_only_loss=True,
        gradient_checkpointing=args.checkpointing,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            args.model, dtype=torch.float32, attn_implementation=args.attention
        ),
        args=config,
        train_dataset=Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=peft_config(),
        callbacks=[Clock(meter)],
    )
    trainer.train()
    meter.report()


main()
