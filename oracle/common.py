"""What the oracle scripts share: folders, versions, and settings that make torch repeatable."""

import importlib.metadata
import os
import sys
from pathlib import Path

# Before transformers is imported: nothing here may look for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "oracle" / "golden"
PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "safetensors", "numpy")


def assets(*parts):
    """A path below the folder that scripts/fetch-assets fills."""
    return Path(os.environ.get("HALTER_ASSETS") or ROOT / "assets").joinpath(*parts)


def need(path, remedy):
    """The path, or a notice and exit 0: an oracle without its input has nothing to say."""
    if not Path(path).exists():
        print(f"skipped: `{path}` is missing ({remedy})")
        sys.exit(0)
    return Path(path)


def versions():
    """Versions of everything that took part in a golden file."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def set_threads(count):
    """Fixes torch's threads; sums over another number of them round differently."""
    import torch

    torch.set_num_threads(count)
