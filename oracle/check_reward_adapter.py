"""Does the adapter of a reward model that halter wrote load in PEFT, value head and all?

    python oracle/check_reward_adapter.py ADAPTER --base BASE --merged DIR

DIR is what `halter merge` made of the two. PEFT has to find a place for every tensor, the head that
was trained among them, and base + adapter has to give DIR's scores. Exits 1 on any mismatch.
"""

import argparse
from pathlib import Path

import checks
from peft import PeftModel
from safetensors.torch import load_file
import torch
from transformers import AutoModelForSequenceClassification


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", type=Path, metavar="ADAPTER")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--merged", type=Path, required=True, metavar="DIR")
    return parser.parse_args()


def classifier(folder):
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def main():
    args = parse()
    checks.quiet()
    checker = checks.Checker(1e-5)
    model = PeftModel.from_pretrained(classifier(args.base), args.adapter).eval()
    places = {
        name.replace(".default", "").replace("modules_to_save.", ""): tensor
        for name, tensor in model.named_parameters()
        if "lora_" in name or "modules_to_save" in name
    }
    tensors = load_file(args.adapter / "adapter_model.safetensors")
    checker.expect(any(name.endswith("score.weight") for name in tensors), "no value head")
    checker.expect(
        places.keys() == tensors.keys(), f"only one has {sorted(places.keys() ^ tensors.keys())[:4]}"
    )
    for name in places.keys() & tensors.keys():
        same = torch.equal(places[name], tensors[name].float())
        checker.expect(same, f"`{name}` is not what PEFT holds")
    print(f"{args.adapter}: {len(tensors)} tensors")
    merged = classifier(args.merged)
    for ids in checks.probes(merged.config.vocab_size):
        scores = [one(input_ids=ids[None], use_cache=False).logits[:, 0] for one in (merged, model)]
        checker.close(f"score of {len(ids)} tokens", *scores)
    checker.finish()


if __name__ == "__main__":
    main()
