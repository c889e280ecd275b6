"""Does the adapter that halter wrote load in PEFT, and is it the same model?

    python oracle/check_adapter.py ADAPTER --base BASE [--reference FILE] [--merged DIR]

FILE holds logits that halter computed with the adapter beside its base (input_ids.N, logits.N);
DIR is what `halter merge` wrote, compared with base + adapter. Without either, the check is that
PEFT finds a place for every tensor and that the adapter changes the base's logits at all.
A deviation may be 1e-5 of the largest logit (--tolerance). Exit 1 on any mismatch.
"""

import argparse
import sys
from pathlib import Path

import checks
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", type=Path, metavar="ADAPTER")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--reference", type=Path, metavar="FILE")
    parser.add_argument("--merged", type=Path, metavar="DIR")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    return parser.parse_args()


def load_adapter(checker, base, folder):
    """PeftModel.from_pretrained, but with its complaints as failures: it only warns."""
    tensors = load_file(folder / "adapter_model.safetensors")
    model = get_peft_model(base, LoraConfig.from_pretrained(folder)).eval()
    result = set_peft_model_state_dict(model, tensors)
    missing = sorted(name for name in result.missing_keys if "lora_" in name)
    checker.expect(not missing, f"PEFT misses {missing[:4]}")
    checker.expect(not result.unexpected_keys, f"PEFT does not know {result.unexpected_keys[:4]}")
    wanted = sum("lora_" in name for name, _ in model.named_parameters())
    checker.expect(wanted == len(tensors), f"{len(tensors)} tensors in the file, PEFT has {wanted}")
    print(f"{folder}: {len(tensors)} tensors")
    return model


def main():
    args = parse()
    checks.quiet()
    checker = checks.Checker(args.tolerance)
    base = checks.load_model(args.base, checker)
    before = [checks.logits_of(base, ids) for ids in checks.probes(base.config.vocab_size)]
    model = load_adapter(checker, base, args.adapter)
    after = [checks.logits_of(model, ids) for ids in checks.probes(base.config.vocab_size)]
    change = max((a - b).abs().max().item() for a, b in zip(after, before))
    print(f"largest change to the base's logits: {change:.3e}")
    checker.expect(change > 0, "the adapter changes nothing")
    if args.reference:
        checks.compare_reference(checker, model, args.reference)
    if args.merged:
        merged = checks.load_model(args.merged, checker)
        checks.compare_models(checker, "merged export against base + adapter", merged, model)
    checker.finish()


if __name__ == "__main__":
    sys.exit(main())
