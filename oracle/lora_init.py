"""LoRA's first weights from a generator that any language can repeat to the bit.

PEFT draws A from torch's generator, which nothing else reproduces, and 20 MB of it is too much to
commit. Here element `e` (row-major) of the A of matrix number `t` depends on (seed, t, e) alone:

    z = output number (t << 32 | e), from zero, of splitmix64 seeded with `seed`
      = mix(seed + ((t << 32 | e) + 1) * 0x9E3779B97F4A7C15)                       (mod 2^64)
    u = (z >> 40) / 2^24                      24 bits, exact in f32, in [0, 1)
    A[e] = f32(2u - 1) * f32(1 / sqrt(in))    one f32 product

    mix(z): z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
            z = (z ^ z >> 27) * 0x94D049BB133111EB
            z ^ z >> 31

The range is PEFT's own (Kaiming with a = sqrt 5). B is zero. Matrices are numbered layer by layer
in the order of MATRICES: t = 7 * layer + index.
"""

import numpy as np

MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def lora_a(seed, number, rank, in_features):
    """A of shape (rank, in_features), f32."""
    with np.errstate(over="ignore"):
        counter = np.arange(1, rank * in_features + 1, dtype=np.uint64) + np.uint64(number << 32)
        z = np.uint64(seed) + counter * np.uint64(GOLDEN_GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    bound = np.float32(1.0 / np.sqrt(np.float64(in_features)))
    return ((np.float32(2) * unit - np.float32(1)) * bound).reshape(rank, in_features)


def fill(model, seed):
    """Sets every A and B of a PEFT model; returns how many pairs there were."""
    import torch

    count = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()
            elif ".lora_A." in name:
                layer, matrix = name.split(".layers.")[1].split(".lora_A.")[0].split(".", 1)
                number = len(MATRICES) * int(layer) + MATRICES.index(matrix)
                parameter.copy_(torch.from_numpy(lora_a(seed, number, *parameter.shape)))
                count += 1
    return count
