"""TRL's GKDTrainer on the same rows in the same order, in f32, off-policy: forward KL from the logits of
--teacher."""

import measure

args = measure.arguments(__doc__)

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl_clock import Clock


def load(path):
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=args.attention
    )


def collate(rows):
    """Every token but the first is trained; the prompt, of which nothing is sampled, is the first."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    labels = ids.clone()
    labels[:, 0] = -100
    whole = torch.ones_like(ids)
    return {
        "input_ids": ids,
        "attention_mask": whole,
        "labels": labels,
        "prompts": ids[:, :1],
        "prompt_attention_mask": whole[:, :1],
    }


def main():
    torch.set_num_threads(args.threads)
    rows = measure.read_rows(args)
    tokens = sum(len(row["input_ids"]) for row in rows[: args.batch_size])
    meter = measure.Meter("trl_gkd", args, tokens)
    config = GKDConfig(
        output_dir=str(args.output / "trainer"),
        per_device_train_batch_size=args.batch_size,
        max_steps=args.max_steps,
        max_length=max(len(row["input_ids"]) for row in rows),
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        gradient_checkpointing=args.checkpointing,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GKDTrainer(
        model=load(args.model),
        teacher_model=load(args.teacher),
        args=config,
        train_dataset=Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows]),
        data_collator=collate,
        processing_class=AutoTokenizer.from_pretrained(args.model),
        callbacks=[Clock(meter)],
    )
    trainer.train()
    meter.report()


main()
