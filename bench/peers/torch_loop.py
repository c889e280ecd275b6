"""A bare PyTorch + transformers fine-tuning loop in f32: what a careful user would write.

Rows of one length make a batch without padding. PEFT is imported for --lora only. With --teacher the
loss is the forward KL of the whole vocabulary from its logits.
"""

import time

import measure

args = measure.arguments(__doc__)

import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM


def load(path):
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=args.attention
    )


def batch(rows):
    ids = torch.tensor([row["input_ids"] for row in rows])
    trained = torch.tensor([row["completion_mask"] for row in rows]).bool()
    return ids, ids.masked_fill(~trained, -100)


def main():
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = measure.read_rows(args)
    model = load(args.model)
    teacher = args.teacher and load(args.teacher).eval().requires_grad_(False)
    if args.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**measure.LORA))
    model.train()
    if args.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
    tokens = sum(len(row["input_ids"]) for row in rows[: args.batch_size])
    mode = "distill" if teacher else "lora" if args.lora else "full"
    meter = measure.Meter(f"torch_{mode}", args, tokens)
    for step in range(args.max_steps):
        ids, labels = batch(rows[step * args.batch_size : (step + 1) * args.batch_size])
        begin = time.perf_counter()
        if teacher:
            with torch.no_grad():
                told = log_softmax(teacher(input_ids=ids, use_cache=False).logits, -1)
            own = log_softmax(model(input_ids=ids, use_cache=False).logits, -1)
            own, told = own.flatten(0, 1), told.flatten(0, 1)
            loss = kl_div(own, told, reduction="batchmean", log_target=True)
        else:
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        value = loss.item()
        meter.step(time.perf_counter() - begin, value)
    meter.report()


main()
