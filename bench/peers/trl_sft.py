"""TRL's SFTTrainer on the same rows in the same order, in f32 (its default is bf16 autocast)."""

import measure

args = measure.arguments(__doc__)

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl_clock import Clock, peft_config


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
        lr_scheduler_type="constant",
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
        peft_config=peft_config(args),
        callbacks=[Clock(meter)],
    )
    trainer.train()
    meter.report()


main()
