"""Golden values of merged models: golden/merge/.

    python oracle/merge_models.py     (needs numpy and safetensors; no weights)

Three variants of the tiny model `golden/tiny/llama-tied`, the base with seeded noise on half of its
values, rounded to f16; and what they become, from the papers' formulas in f64, rounded to f32:
`average` and `linear` (Wortsman et al. 2022), `slerp` of the first two (Shoemake 1985), `ties`
(Yadav et al. 2023, algorithm 1, trimmed parameter by parameter, lambda 1). Weights and shares are in
the files' metadata.
"""

import json
import shutil

import common
import numpy as np
from safetensors.numpy import load_file, save_file

BASE = common.GOLDEN / "tiny" / "llama-tied"
OUT = common.GOLDEN / "merge"
VARIANTS = ("a", "b", "c")
WEIGHTS = (0.5, 2.0, 1.25)
T = 0.3
DENSITY = 0.4


def variant(base, seed):
    random = np.random.default_rng(seed)

    def noisy(values):
        noise = random.normal(0, 0.02, values.shape) * (random.random(values.shape) < 0.5)
        return (values + noise).astype(np.float16)

    return {name: noisy(values) for name, values in sorted(base.items())}


def linear(thetas, weights):
    return sum(w * theta for w, theta in zip(weights, thetas)) / sum(weights)


def slerp(a, b, t):
    cosine = np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))
    omega = np.arccos(np.clip(cosine, -1, 1))
    assert np.sin(omega) > 1e-3, "no case for a formula without its exception"
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def trim(tau, density):
    kept = max(int(np.floor(density * tau.size + 0.5)), 1)
    least = np.sort(np.abs(tau), axis=None)[-kept]
    return np.where(np.abs(tau) >= least, tau, 0)


def ties(base, thetas, weights, density):
    taus = np.stack([trim(theta - base, density) for theta in thetas])
    weights = np.array(weights).reshape(-1, *[1] * base.ndim)
    sign = np.sign(np.sum(weights * taus, axis=0))
    agrees = (np.sign(taus) == sign) & (sign != 0)
    total = np.sum(weights * agrees, axis=0)
    change = np.sum(weights * taus * agrees, axis=0) / np.where(total > 0, total, 1)
    return base + change


def main():
    base = load_file(BASE / "model.safetensors")
    shutil.rmtree(OUT, ignore_errors=True)
    variants = []
    for seed, name in enumerate(VARIANTS, start=1):
        variants.append(variant(base, seed))
        (OUT / name).mkdir(parents=True)
        save_file(variants[-1], OUT / name / "model.safetensors", {"format": "pt", "seed": str(seed)})
        shutil.copy(BASE / "config.json", OUT / name / "config.json")

    wide = lambda model: {name: values.astype(np.float64) for name, values in model.items()}
    base, variants = wide(base), [wide(model) for model in variants]
    uniform = (1.0,) * len(variants)
    merged = {
        "average": ({}, lambda name, all: linear(all, uniform)),
        "linear": ({"weights": WEIGHTS}, lambda name, all: linear(all, WEIGHTS)),
        "slerp": ({"t": T}, lambda name, all: slerp(all[0], all[1], T)),
        "ties": (
            {"weights": WEIGHTS, "density": DENSITY},
            lambda name, all: ties(base[name], all, WEIGHTS, DENSITY),
        ),
    }
    for method, (settings, merge) in merged.items():
        tensors = {n: merge(n, [model[n] for model in variants]).astype(np.float32) for n in sorted(base)}
        path = OUT / f"{method}.safetensors"
        save_file(tensors, path, {"settings": json.dumps(settings)})
        print(f"wrote {path.relative_to(common.ROOT)}: {len(tensors)} tensors, {path.stat().st_size >> 10} KiB")


main()
