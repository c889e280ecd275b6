"""TRL's DPOTrainer on the same pairs in the same order, in f32 (its default is bf16 autocast)."""

import measure

args = measure.arguments(__doc__)

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl_clock import Clock, peft_config


class AsTheyAre(DPOTrainer):
    """Takes rows that are tokenized already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def load_model():
    return AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation=args.attention
    )


def main():
    torch.set_num_threads(args.threads)
    rows = measure.read_rows(args)
    tokens = sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in rows[: args.batch_size]
    )
    mode = "lora" if args.lora else "full"
    meter = measure.Meter(f"trl_dpo_{mode}", args, tokens)
    config = DPOConfig(
        output_dir=str(args.output / "trainer"),
        per_device_train_batch_size=args.batch_size,
        max_steps=args.max_steps,
        max_length=None,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        precompute_ref_log_probs=args.precompute,
        precompute_ref_batch_size=args.batch_size,
        gradient_checkpointing=args.checkpointing,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = AsTheyAre(
        model=load_model(),
        ref_model=None if args.lora or args.precompute else load_model(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=peft_config(args),
        callbacks=[Clock(meter)],
    )
    trainer.train()
    meter.report()


main()
