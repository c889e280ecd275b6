"""What check_export.py and check_adapter.py share: probes, and a comparison that can fail."""

import sys
import warnings
from pathlib import Path

import common  # noqa: F401  (keeps the libraries offline; before transformers)
import torch
import transformers
from safetensors.torch import load_file

PROBE_LENGTHS = (24, 7)
PROBE_TEXTS = (
    "The capital of France is Paris.",
    "  two  spaces\n\ttab, 2023 + 17 = 2040; don't",
    "naïve café — 日本語 🦙",
)
PROBE_CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And twice that?"},
]


class Checker:
    """Counts comparisons, keeps the worst deviation, and says at the end whether all passed."""

    def __init__(self, tolerance):
        self.tolerance, self.count, self.failures = tolerance, 0, []

    def expect(self, holds, what):
        self.count += 1
        if not holds:
            self.failures.append(what)
            print(f"FAILED: {what}")

    def close(self, what, ours, theirs):
        """Largest difference, at most `tolerance` times the largest reference value (or 1)."""
        if ours.shape != theirs.shape:
            self.expect(False, f"{what}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
            return
        ours, theirs = ours.double(), theirs.double()
        finite = bool(torch.isfinite(ours).all() and torch.isfinite(theirs).all())
        gap = (ours - theirs).abs().max().item() if finite else float("inf")
        limit = self.tolerance * max(1.0, theirs.abs().max().item() if finite else 1.0)
        print(f"{what}: max deviation {gap:.3e} over {ours.numel()} values (limit {limit:.1e})")
        self.expect(gap <= limit, f"{what}: deviation {gap:.3e} is above {limit:.1e}")

    def finish(self):
        """Prints the verdict and exits: 0 only where something was compared and all of it held."""
        if self.count == 0:
            sys.exit("error: nothing was compared")
        print(f"{self.count - len(self.failures)} of {self.count} checks passed")
        sys.exit(1 if self.failures else 0)


def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def load_model(folder, checker):
    """The model in f32 and eager attention; nothing may be missing from its files or left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        wrong = sorted(map(str, info[kind]))
        checker.expect(not wrong, f"`{folder}` has {kind.replace('_', ' ')}: {wrong[:4]}")
    return model.eval()


def probes(vocab_size):
    """Two sequences of token ids that any model of this vocabulary can read."""
    random = torch.Generator().manual_seed(7)
    return [torch.randint(0, vocab_size, (length,), generator=random) for length in PROBE_LENGTHS]


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=ids.long()[None], use_cache=False).logits[0]


def compare_reference(checker, model, path, key="logits"):
    """Against a file laid out as the golden ones: `input_ids.N` and `KEY.N`, N from 0."""
    tensors = load_file(path)
    numbers = sorted(name.split(".")[1] for name in tensors if name.startswith(f"{key}."))
    checker.expect(bool(numbers), f"`{path}` has no `{key}.N`")
    for number in numbers:
        ours = logits_of(model, tensors[f"input_ids.{number}"])
        checker.close(f"{Path(path).name} {key}.{number}", ours, tensors[f"{key}.{number}"])


def compare_models(checker, what, ours, theirs):
    """The same probes through both."""
    for index, ids in enumerate(probes(theirs.config.vocab_size)):
        checker.close(f"{what}, probe {index}", logits_of(ours, ids), logits_of(theirs, ids))


def compare_tokenizers(checker, folder, base):
    """The same ids, the same text back, the same rendered conversation."""
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(base)
    for text in PROBE_TEXTS:
        a, b = ours(text)["input_ids"], theirs(text)["input_ids"]
        checker.expect(a == b, f"tokens of {text!r}: {a}, expected {b}")
        checker.expect(ours.decode(a) == theirs.decode(b), f"decoded text of {text!r} differs")
    if theirs.chat_template:
        for prompt in (False, True):
            a, b = (
                t.apply_chat_template(PROBE_CHAT, add_generation_prompt=prompt, tokenize=False)
                for t in (ours, theirs)
            )
            checker.expect(a == b, f"rendered conversation: {a!r}, expected {b!r}")
    for name in ("bos_token_id", "eos_token_id"):
        a, b = getattr(ours, name), getattr(theirs, name)
        checker.expect(a == b, f"{name}: {a}, expected {b}")
