"""A loss on values inside tiny models beside the log-probs: what distillation's losses on hidden
states need.

    python oracle/tiny_taps.py        # writes oracle/golden/distill/taps-<case>.safetensors

The models and rows are those of golden/tiny (tiny_models.py), in true f64, rounded to f32:

    hidden.L, attention.L   (T of both sequences, hidden): the stream behind block L; what its
                            attention adds to the stream
    loss                    that of tiny_models.py, and the mean squares of the taps, weighted as WEIGHTS
    grad.NAME               d loss / d parameter
"""

import json

from common import GOLDEN, set_threads, versions
from exact import in_f64
import torch
from safetensors.torch import load_file, save_file
from tiny_models import forward, load_exact

WEIGHTS = {"hidden.0": 0.3, "attention.0": 0.7, "hidden.1": 0.2, "attention.1": 0.5}


def tap(model):
    """Collects the taps' values over all calls of the model."""
    taps = {name: [] for name in WEIGHTS}
    for index, block in enumerate(model.model.layers):
        first = lambda output: output[0] if isinstance(output, tuple) else output
        for name, module in (("hidden", block), ("attention", block.self_attn)):
            values = taps[f"{name}.{index}"]
            module.register_forward_hook(
                lambda module, inputs, output, values=values: values.append(
                    first(output).reshape(-1, first(output).shape[-1])
                )
            )
    return taps


def main():
    set_threads(1)
    for case in ("llama-tied", "qwen3"):
        folder = GOLDEN / "tiny" / case
        golden = load_file(folder / "golden.safetensors")
        rows = [(golden[f"input_ids.{n}"], golden[f"completion_mask.{n}"]) for n in range(2)]
        build = load_exact(folder)
        with in_f64():
            model = build()
            taps = tap(model)
            loss = forward(model, rows)["loss"]
            values = {name: torch.cat(parts) for name, parts in taps.items()}
            for name, weight in WEIGHTS.items():
                loss = loss + weight * values[name].square().mean()
            loss.backward()
            out = {"loss": loss, **values}
            out |= {f"grad.{name}": p.grad for name, p in model.named_parameters()}
        out = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in out.items()}
        about = {"by": "oracle/tiny_taps.py", "versions": json.dumps(versions())}
        save_file(out, GOLDEN / "distill" / f"taps-{case}.safetensors", metadata=about)
        print(f"{case}: loss {loss.item():.6f}")


if __name__ == "__main__":
    main()
