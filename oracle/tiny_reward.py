"""A tiny reward model as transformers saves it: scores, loss and every gradient.

    python oracle/tiny_reward.py

writes oracle/golden/tiny/reward: `llama-tied` (tiny_models.py) as LlamaForSequenceClassification, saved by
transformers with a value head score[i] = ((7919 i) mod 2001 - 1000) / 4000, and golden.safetensors, in
true f64 rounded to f32:

    prompt.N           (T,) i64   two prompts, N = 0, 1
    completion.N.K     (T,) i64   three completions of the first, two of the second, best first; the last
                                  one ends in padding tokens
    scores             (5,)       of prompt and completion as one row
    loss               ()         mean over prompts of the mean over ordered pairs of
                                  -ln sigma(better - worse - 0.5) + 0.01 (better + worse)^2
    grad.NAME                     d loss / d parameter
"""

import json
import shutil

from common import GOLDEN, set_threads, versions
from exact import in_f64
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

BASE, CASE = GOLDEN / "tiny" / "llama-tied", GOLDEN / "tiny" / "reward"
MARGIN, CENTER, PADDING = 0.5, 0.01, 0


def rows():
    random = torch.Generator().manual_seed(5)

    def ids(length):
        return torch.randint(3, 48, (length,), generator=random)

    prompts = [ids(7), ids(4)]
    completions = [[ids(5), ids(3), ids(6)], [ids(4), torch.cat([ids(3), torch.zeros(2).long()])]]
    return prompts, completions


def score(hidden):
    index = torch.arange(hidden, dtype=torch.float64)
    return (((7919 * index) % 2001 - 1000) / 4000)[None]


def main():
    set_threads(1)
    shutil.rmtree(CASE, ignore_errors=True)
    model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)
    with torch.no_grad():
        model.score.weight.copy_(score(model.config.hidden_size).float())
    model.save_pretrained(CASE)
    config = json.loads((CASE / "config.json").read_text())
    config.pop("transformers_version", None)
    (CASE / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    prompts, completions = rows()
    # Widened before the guard forbids f32.
    weights = {name: value.double() for name, value in model.state_dict().items()}
    config = AutoConfig.from_pretrained(CASE, dtype=torch.float64)
    with in_f64():
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
        model.load_state_dict(weights)
        scores, losses = [], []
        for prompt, ranked in zip(prompts, completions):
            rewards = [
                model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0, 0]
                for completion in ranked
            ]
            pairs = [(a, b) for i, a in enumerate(rewards) for b in rewards[i + 1 :]]
            terms = [
                -torch.nn.functional.logsigmoid(a - b - MARGIN) + CENTER * (a + b) ** 2
                for a, b in pairs
            ]
            scores += rewards
            losses.append(torch.stack(terms).mean())
        loss = torch.stack(losses).mean()
        loss.backward()
    tensors = {"scores": torch.stack(scores).detach(), "loss": loss.detach()}
    tensors |= {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    tensors = {name: value.to(torch.float32).contiguous() for name, value in tensors.items()}
    for n, (prompt, ranked) in enumerate(zip(prompts, completions)):
        tensors[f"prompt.{n}"] = prompt
        tensors |= {f"completion.{n}.{k}": ids for k, ids in enumerate(ranked)}
    metadata = {"by": "oracle/tiny_reward.py", "versions": json.dumps(versions())}
    save_file(tensors, CASE / "golden.safetensors", metadata)
    print("scores", tensors["scores"].tolist(), "loss", loss.item(), len(tensors), "tensors")


if __name__ == "__main__":
    main()
