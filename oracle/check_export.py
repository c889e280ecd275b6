"""Does what halter exported load in transformers, and is it the same model?

    python oracle/check_export.py DIR --reference FILE      logits of halter: input_ids.N, logits.N
    python oracle/check_export.py DIR --base BASE            equal to another folder
    python oracle/check_export.py DIR --base BASE --adapter ADAPTER     equal to base + PEFT adapter

DIR is read by AutoModelForCausalLM and, where it holds one, AutoTokenizer; with --base the
tokenizers and chat templates are compared as well. A deviation may be 1e-5 of the largest logit
(--tolerance). Exit 1 on any mismatch, 2 on wrong arguments.
"""

import argparse
import sys
from pathlib import Path

import checks
import transformers


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", type=Path, metavar="DIR")
    parser.add_argument("--reference", type=Path, metavar="FILE")
    parser.add_argument("--base", type=Path, metavar="BASE")
    parser.add_argument("--adapter", type=Path, metavar="ADAPTER")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    if not args.reference and not args.base:
        parser.error("nothing to compare with: give --reference or --base")
    if args.adapter and not args.base:
        parser.error("--adapter needs its --base")
    return args


def main():
    args = parse()
    checks.quiet()
    checker = checks.Checker(args.tolerance)
    model = checks.load_model(args.export, checker)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.export}: {type(model).__name__}, {parameters} parameters")
    if args.reference:
        checks.compare_reference(checker, model, args.reference)
    if args.base:
        expected = checks.load_model(args.base, checker)
        what = "export against base"
        if args.adapter:
            from peft import PeftModel

            expected = PeftModel.from_pretrained(expected, args.adapter).eval()
            what = "export against base + adapter"
        checks.compare_models(checker, what, model, expected)
    if (args.export / "tokenizer.json").exists():
        if args.base and (args.base / "tokenizer.json").exists():
            checks.compare_tokenizers(checker, args.export, args.base)
        else:
            size = len(transformers.AutoTokenizer.from_pretrained(args.export))
            limit = model.config.vocab_size
            checker.expect(size <= limit, f"{size} tokens for an embedding of {limit} rows")
    elif args.base and (args.base / "tokenizer.json").exists():
        checker.expect(False, f"`{args.export}` has no tokenizer.json, its base has")
    checker.finish()


if __name__ == "__main__":
    sys.exit(main())
