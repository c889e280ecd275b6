"""Tiny random models of every decoder family: logits, log-probs, loss and every gradient.

    python oracle/tiny_models.py            # writes oracle/golden/tiny/<case>/
    python oracle/tiny_models.py --check    # computes again, compares with what is committed

Each case holds a checkpoint as Hugging Face writes it (config.json, model.safetensors) and
golden.safetensors, whose tensors are computed by transformers (eager attention) in true f64 and
rounded to f32; how far transformers' own f32 run is from them stands in its metadata:

    input_ids.N        (T,) i64    sequence N = 0, 1; never seen by the other one
    completion_mask.N  (T,) u8     1 where the token is trained; the first never is
    logits.N           (T, vocab)
    per_token_logps.N  (T,)        log p(token t | tokens before t), 0 for t = 0
    loss               ()          -sum of the masked log-probs of both / number of masked tokens
    grad.NAME                      d loss / d parameter

Cases `lora*` are PEFT adapters on `llama-tied` (adapter_config.json, adapter_model.safetensors);
their golden.safetensors has the gradients of A and B, the logits with the adapter beside the base,
and `merged_logits.N` of PEFT's merge_and_unload.
"""

import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path

from common import GOLDEN, set_threads, versions
from exact import in_f64
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 48
BASE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=True,
)
# Wavelengths of the four frequencies of a head of 8 at theta 1e4: 6, 63, 628, 6283. With these
# factors the first is left alone, the second is in the ramp and the others are scaled in full.
LLAMA3_SCALING = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
# name: (model_type, fields that differ from BASE, lengths of the two sequences)
# `rope_theta` and `rope_scaling` at the top level are how checkpoints before transformers 5 were
# published; without them the file has `rope_parameters`, as transformers 5 writes it.
CASES = {
    "llama-tied": ("llama", {}, (13, 9)),
    "llama-untied-mha": (
        "llama",
        dict(tie_word_embeddings=False, num_key_value_heads=4, rms_norm_eps=1e-6),
        (13, 9),
    ),
    "llama3-rope": ("llama", dict(rope_theta=10000.0, rope_scaling=LLAMA3_SCALING), (40, 9)),
    "llama-linear-rope": (
        "llama",
        dict(rope_theta=10000.0, rope_scaling=dict(type="linear", factor=4.0)),
        (13, 9),
    ),
    "llama-bias": ("llama", dict(attention_bias=True, mlp_bias=True), (13, 9)),
    "llama-head-dim": ("llama", dict(head_dim=12, tie_word_embeddings=False), (13, 9)),
    "mistral-window": ("mistral", dict(sliding_window=6, tie_word_embeddings=False), (24, 9)),
    "qwen2": ("qwen2", dict(rope_theta=1000000.0), (13, 9)),
    "qwen2-window": (
        "qwen2",
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
        (24, 9),
    ),
    "qwen3": ("qwen3", dict(head_dim=16, rms_norm_eps=1e-6), (13, 9)),
}
LORA_CASES = {"lora": dict(use_rslora=False), "lora-rslora": dict(use_rslora=True)}
LORA_BASE = "llama-tied"
OLD_STYLE_FIELDS = ("rope_theta", "rope_scaling")
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def fill(model, seed):
    """Weights wide enough that a path left out or a bias ignored shows in the first digits."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if "norm" in name:
                parameter.copy_(1.0 + 0.1 * noise)
            elif name.endswith(".bias"):
                parameter.copy_(0.2 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(0.25 * noise)
            else:
                parameter.copy_(0.16 * noise)


def inputs(lengths, seed):
    """Token ids and completion masks of the two sequences."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(0, VOCAB, (length,), generator=random)
        mask = (torch.rand(length, generator=random) < 0.6).to(torch.uint8)
        mask[0] = 0
        rows.append((ids, mask))
    return rows


def write_checkpoint(folder, model_type, fields, seed):
    """A checkpoint folder; config.json in the style that `fields` asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = copy.deepcopy({**BASE, **fields})
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**merged))
    fill(model, seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)
    if any(field in fields for field in OLD_STYLE_FIELDS):
        config.pop("rope_parameters")
        config.update({field: fields[field] for field in OLD_STYLE_FIELDS if field in fields})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def forward(model, rows):
    """Logits and log-probs of each row alone, and the loss over all of them."""
    out, total, count = {}, 0.0, 0
    for index, (ids, mask) in enumerate(rows):
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        logps = torch.log_softmax(logits, dim=-1)[:-1].gather(1, ids[1:, None]).squeeze(1)
        logps = torch.cat([logps.new_zeros(1), logps])
        total = total - (logps * mask.to(logps.dtype)).sum()
        count += int(mask.sum())
        out[f"logits.{index}"] = logits
        out[f"per_token_logps.{index}"] = logps
    out["loss"] = total / count
    return out


def run(model, rows, trained):
    """Everything that is compared; `trained` maps the names in the file to parameters."""
    model.zero_grad(set_to_none=True)
    out = forward(model, rows)
    out["loss"].backward()
    for name, parameter in trained.items():
        out[f"grad.{name}"] = parameter.grad
    return {name: tensor.detach().clone() for name, tensor in out.items()}


def load(folder):
    """The model in f32, as a user would load it."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def deviation(ours, exact, prefix):
    """Largest difference relative to the largest entry of its tensor (absolute for logits)."""
    worst = 0.0
    for name in exact:
        if name.startswith(prefix):
            scale = 1.0 if prefix == "logits" else exact[name].abs().max().item()
            worst = max(worst, (ours[name].double() - exact[name]).abs().max().item() / scale)
    return worst


def save_golden(folder, rows, exact, single):
    """golden.safetensors: f64 results rounded to f32, with transformers' f32 error beside them."""
    tensors = {name: tensor.to(torch.float32).contiguous() for name, tensor in exact.items()}
    for index, (ids, mask) in enumerate(rows):
        tensors[f"input_ids.{index}"] = ids
        tensors[f"completion_mask.{index}"] = mask
    about = {
        "by": "oracle/tiny_models.py",
        "versions": json.dumps(versions()),
        "f32_max_abs_deviation_logits": f"{deviation(single, exact, 'logits'):.2e}",
        "f32_max_relative_deviation_grad": f"{deviation(single, exact, 'grad.'):.2e}",
    }
    save_file(tensors, folder / "golden.safetensors", metadata=about)
    print(f"{folder.name:18} loss {exact['loss'].item():.6f}  transformers' f32: logits",
          f"{about['f32_max_abs_deviation_logits']}, grads",
          about["f32_max_relative_deviation_grad"])


def model_case(root, index, name):
    model_type, fields, lengths = CASES[name]
    folder = root / name
    write_checkpoint(folder, model_type, fields, seed=100 + index)
    rows = inputs(lengths, seed=200 + index)
    model = load(folder)
    single = run(model, rows, dict(model.named_parameters()))
    build = load_exact(folder)
    with in_f64():
        model = build()
        exact = run(model, rows, dict(model.named_parameters()))
    untouched = [n for n, t in exact.items() if n.startswith("grad.") and not t.abs().sum() > 0]
    # Without rotary positions a key's bias would shift all scores of a query alike and do nothing.
    assert not untouched, f"{name}: no gradient reaches {untouched}"
    save_golden(folder, rows, exact, single)


def load_exact(folder):
    """The model in f64, in two steps: a file's f32 must be widened before the guard forbids f32."""
    state = {name: tensor.double() for name, tensor in load_file(folder / WEIGHTS).items()}
    config = AutoConfig.from_pretrained(folder, dtype=torch.float64)

    def build():
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        left = model.load_state_dict(state, strict=False)
        assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}, left
        model.tie_weights()
        return model

    return build


def lora_case(root, index, name):
    folder, rows = root / name, inputs((13, 9), seed=300 + index)
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM",
        **LORA_CASES[name],
    )
    model = get_peft_model(load(root / LORA_BASE), config)
    random = torch.Generator().manual_seed(400 + index)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # B too: with B = 0 no gradient would reach A
                parameter.copy_(0.12 * torch.randn(parameter.shape, generator=random))
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)

    tidy_adapter_config(folder / "adapter_config.json")

    model = PeftModel.from_pretrained(load(root / LORA_BASE), folder, is_trainable=True)
    single = run_adapter(model, rows)
    build, state = load_exact(root / LORA_BASE), load_file(folder / ADAPTER)
    state = {name: tensor.double() for name, tensor in state.items()}
    with in_f64():
        model = get_peft_model(build(), config)
        left = set_peft_model_state_dict(model, state)
        assert not left.unexpected_keys, left
        exact = run_adapter(model, rows)
    save_golden(folder, rows, exact, single)


def tidy_adapter_config(path):
    """PEFT writes a set in hash order and the folder of this run: neither belongs in git."""
    fields = json.loads(path.read_text())
    fields["target_modules"].sort()
    fields["base_model_name_or_path"] = LORA_BASE
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def run_adapter(model, rows):
    """Beside the base, and merged into it."""
    trained = {
        name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad
    }
    out = run(model, rows, trained)
    merged = forward(model.merge_and_unload(), rows)
    for index in range(len(rows)):
        out[f"merged_logits.{index}"] = merged[f"logits.{index}"].detach()
    return out


def write_all(root):
    for index, name in enumerate(CASES):
        model_case(root, index, name)
    for index, name in enumerate(LORA_CASES):
        lora_case(root, index, name)


def check(root, committed):
    """Compares freshly computed files with the committed ones; the number of cases, or an exit."""
    worst, count = 0.0, 0
    for path in sorted(root.glob("*/*.safetensors")):
        fresh, kept = load_file(path), load_file(committed / path.relative_to(root))
        if fresh.keys() != kept.keys():
            sys.exit(f"`{path.relative_to(root)}` has other tensors than the committed file")
        for name, tensor in fresh.items():
            gap = (tensor.double() - kept[name].double()).abs().max().item()
            worst, count = max(worst, gap), count + 1
            if gap > 1e-6 * max(1.0, kept[name].abs().max().item()):
                sys.exit(f"`{path.relative_to(root)}`: `{name}` is off by {gap:.2e}")
    if count == 0:
        sys.exit("nothing was compared")
    print(f"{count} tensors agree with the committed ones (largest difference {worst:.1e})")


def main():
    set_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    target = GOLDEN / "tiny"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "tiny"
        write_all(root)
        if "--check" in sys.argv[1:]:
            check(root, target)
            return
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(root, target)


if __name__ == "__main__":
    main()
