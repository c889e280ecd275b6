"""Golden values of the distillation losses: golden/distill/divergences.json.

    python oracle/make_divergences.py     (needs torch and trl; no weights)

Forward KL, reverse KL and the generalised JSD come from TRL's `GKDTrainer.generalized_jsd_loss` in f64,
row by row; total variation and the divergences over a teacher's likeliest tokens and all others
together are torch's, from their definitions. Each case has the loss of every row and its gradient in
the student's logits.
"""

import json
import math

import common
import torch
from trl.experimental.gkd import GKDTrainer

ROWS, VOCABULARY = 5, 37
CASES = [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.5), ("jsd", 0.1), ("tv", None)]
TEMPERATURES = [1.0, 2.0, 0.7]
TOP = [None, 1, 8, VOCABULARY]


def logits(seed):
    generator = torch.Generator().manual_seed(seed)
    # From nearly even to nearly certain; rounded to what f32 holds.
    scale = torch.tensor([0.01, 1.0, 3.0, 10.0, 30.0]).unsqueeze(1)
    return (torch.randn(ROWS, VOCABULARY, generator=generator) * scale).float().double()


def classes(student, teacher, k):
    """Log-probs of the teacher's k likeliest tokens and of all others together."""
    top, ids = teacher.topk(k)
    other = torch.ones_like(teacher, dtype=torch.bool).scatter(1, ids, False)
    rest = lambda logps: logps.masked_fill(~other, -math.inf).logsumexp(1, keepdim=True)
    if k == VOCABULARY:
        return student.gather(1, ids), top, ids, None
    of_rest = rest(teacher)
    return torch.cat([student.gather(1, ids), rest(student)], 1), torch.cat([top, of_rest], 1), ids, of_rest


def divergence(name, beta, student, teacher):
    """Of each row, from log-probs."""
    p, q = teacher.exp(), student.exp()
    if name == "forward_kl":
        return (p * (teacher - student)).sum(1)
    if name == "reverse_kl":
        return (q * (student - teacher)).sum(1)
    if name == "tv":
        return (p - q).abs().sum(1) / 2
    m = (beta * p + (1 - beta) * q).log()
    return beta * (p * (teacher - m)).sum(1) + (1 - beta) * (q * (student - m)).sum(1)


def by_trl(beta, temperature, student, teacher):
    each = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature, reduction="none")
    return each.sum(-1)


def main():
    student, teacher = logits(1), logits(2)
    # A row that the student has learned.
    student[2] = teacher[2] + 0.3 * logits(3)[0]
    student = student.float().double()
    cases = []
    for name, beta in CASES:
        for temperature in TEMPERATURES:
            for k in TOP:
                leaf = student.clone().requires_grad_()
                logp, logq = (torch.log_softmax(x / temperature, 1) for x in (teacher, leaf))
                top = {}
                if k is not None:
                    logq, logp, ids, rest = classes(logq, logp, k)
                    top = {"ids": ids.tolist(), "logps": logp[:, :k].tolist()}
                    top["rest"] = [-1e30] * ROWS if rest is None else rest.flatten().tolist()
                loss = divergence(name, beta, logq, logp)
                if k is None and name != "tv":
                    ours, loss = loss, by_trl(beta, temperature, leaf, teacher)
                    torch.testing.assert_close(ours, loss, rtol=1e-9, atol=1e-12)
                (gradient,) = torch.autograd.grad(loss.sum(), leaf)
                case = {"divergence": name, "beta": beta, "temperature": temperature, "k": k, **top}
                cases.append(case | {"loss": loss.tolist(), "gradient": gradient.tolist()})
    path = common.GOLDEN / "distill" / "divergences.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(cases), parse_float=lambda text: float(f"{float(text):.9g}"))
    out = {"student": student.tolist(), "teacher": teacher.tolist(), "cases": rounded}
    path.write_text(json.dumps(out) + "\n")
    print(f"wrote {path}: {len(cases)} cases, {path.stat().st_size >> 10} KiB")


main()
