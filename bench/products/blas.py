#!/usr/bin/env python3
"""The table of src/main.rs for numpy's OpenBLAS and torch's MKL (with oracle/requirements.txt).

    .venv/bin/python bench/products/blas.py

The same shapes, layouts, threads and repetitions, in turn, into memory that is there already.
OpenBLAS is called directly, since numpy cannot add to a result.
"""

import ctypes
import os
import statistics
import time
from pathlib import Path

THREADS = os.environ.setdefault("OPENBLAS_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import numpy
import torch

TOKENS = 512
SHAPES = [(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152), (2048, 5632)]
ROUNDS, REPETITIONS = 5, 3
ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112


def openblas():
    """cblas_sgemm of the library that numpy brings along."""
    libraries = Path(numpy.__file__).parent.parent / "numpy.libs"
    function = ctypes.CDLL(str(next(libraries.glob("*openblas64*")))).scipy_cblas_sgemm64_
    size, number, address = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
    function.argtypes = [ctypes.c_int] * 3 + [size] * 3
    function.argtypes += [number, address, size, address, size, number, address, size]
    function.restype = None

    def product(a, b, c, adds):
        (m, n), k = c.shape, a.shape[1]
        operands = []
        for x in (a, b):
            turned = x.strides[0] < x.strides[1]
            operands.append((TRANSPOSED if turned else PLAIN, x.ctypes.data, max(x.strides) // 4))
        (turn_a, a, lead_a), (turn_b, b, lead_b) = operands
        beta = 1.0 if adds else 0.0
        shape = (ROW_MAJOR, turn_a, turn_b, m, n, k, 1.0)
        function(*shape, a, lead_a, b, lead_b, beta, c.ctypes.data, n)

    return product


def mkl(a, b, c, adds):
    a, b, c = map(torch.from_numpy, (a, b, c))
    if adds:
        c.addmm_(a, b)
    else:
        torch.mm(a, b, out=c)


def numbers(rows, columns):
    values = numpy.arange(rows * columns) * 7919 % 1000 / 5000.0 - 0.1
    return values.astype(numpy.float32).reshape(rows, columns)


def measure(libraries, a, b, c, adds):
    """Median GFLOP/s of each. The pause is for the other one's threads, which wait for more work."""
    rates = {name: [] for name in libraries}
    for _ in range(ROUNDS):
        for name, run in libraries.items():
            time.sleep(0.2)
            run(a, b, c, adds)
            for _ in range(REPETITIONS):
                begin = time.perf_counter()
                run(a, b, c, adds)
                seconds = time.perf_counter() - begin
                rates[name].append(2e-9 * c.size * a.shape[1] / seconds)
    return [statistics.median(rates[name]) for name in libraries]


def main():
    torch.set_num_threads(int(THREADS))
    libraries = {"OpenBLAS (numpy)": openblas(), "MKL (torch)": mkl}
    want, got = numbers(8, 5) @ numbers(7, 5).T, numpy.ones((8, 7), numpy.float32)
    libraries["OpenBLAS (numpy)"](numbers(8, 5), numbers(7, 5).T, got, True)
    assert numpy.allclose(got, want + 1.0), "OpenBLAS is not called as it wants to be"
    print(f"| tokens, in, out | product | {' | '.join(libraries)} |")
    print(f"|---|---|{'---|' * len(libraries)}")
    for inputs, outputs in SHAPES:
        x, w, y = numbers(TOKENS, inputs), numbers(outputs, inputs), numbers(TOKENS, outputs)
        dx, dw = numbers(TOKENS, inputs), numbers(outputs, inputs)
        products = {
            "forward": (x, w.T, y, False),
            "input": (y, w, dx, False),
            "weight": (y.T, x, dw, True),
        }
        for name, product in products.items():
            cells = " | ".join(f"{rate:.0f}" for rate in measure(libraries, *product))
            print(f"| {TOKENS}, {inputs}, {outputs} | {name} | {cells} |", flush=True)


main()
