"""Runs transformers' models in true f64.

`model.double()` is not enough: the modeling code names f32 where it wants more precision than bf16
(the norms, the softmax, the rotary angles), and so rounds an f64 model down. `in_f64()` makes those
names mean f64 while a model is built and run, and refuses any f32 result that slips through, so a
new release of transformers cannot quietly weaken the golden files.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RefuseF32(TorchDispatchMode):
    """Raises as soon as an operation gives an f32 tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == REAL_F32:
                raise TypeError(f"`{func}` gave f32 in an f64 run")
        return out


REAL_F32 = torch.float32


@contextmanager
def in_f64():
    """Inside, torch.float32, torch.float and Tensor.float() all mean f64."""
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        with RefuseF32():
            yield
    finally:
        torch.float32, torch.float, torch.Tensor.float, default = saved
        torch.set_default_dtype(default)
