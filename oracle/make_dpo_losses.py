"""Golden values of the preference losses: golden/dpo/losses.json.

    python oracle/make_dpo_losses.py     (needs torch and trl; no weights)

Loss, rewards and gradients come from TRL's own methods in f64, which see log-probs that a stub of a
model hands out: `DPOTrainer._compute_loss`, `KTOTrainer._compute_loss`, `CPOTrainer.
get_batch_loss_metrics`, `ORPOTrainer.get_batch_loss_metrics`. A pair is run alone, so that the mean
over the batch is its loss; AOT, which sorts the batch, is run on all pairs. Two things are not in
this version of TRL:

- label smoothing in plain DPO (cDPO) and IPO on sums: `CPOTrainer.cpo_loss` has both formulas, and
  gets log-ratios instead of log-probs;
- the shift of `bco_pair` by a running mean: the formula of earlier versions, in torch below.

TRL's NLL in CPO and ORPO is a mean over the tokens of the batch, in ORPO over the prompt too; here
it is given to them per pair, over the completion.
"""

import json
from collections import defaultdict
from types import SimpleNamespace

import common
import torch
import torch.nn.functional as F
import trl
from exact import in_f64
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

# Sums that are ordinary, equal to the reference's, far apart, and of every sign of log-ratio.
CHOSEN = [-20.5, -31.25, -7.0, -95.5, -160.0, -1200.0, -0.75]
REJECTED = [-24.0, -28.75, -7.5, -64.0, -310.0, -1900.5, -3.5]
REF_CHOSEN = [-22.0, -31.25, -9.5, -80.0, -420.0, -400.0, -0.5]
REF_REJECTED = [-23.5, -28.75, -5.25, -71.0, -130.0, -2500.0, -4.0]
CHOSEN_TOKENS = [10, 13, 4, 40, 55, 300, 2]
REJECTED_TOKENS = [12, 9, 4, 61, 20, 410, 1]
LABELS = [True, False, True, True, False, False, True]
REWARD_MEAN = 0.37

DEFAULTS = {"beta": 0.1, "label_smoothing": 0.0, "discopop_tau": 0.05, "simpo_gamma": 0.5, "cpo_alpha": 1.0}
DPO = [
    ("sigmoid", {}), ("sigmoid", {"beta": 0.5}), ("sigmoid_norm", {"beta": 2.0}), ("hinge", {}), ("ipo", {}),
    ("exo_pair", {"label_smoothing": 0.001}), ("exo_pair", {"label_smoothing": 0.2, "beta": 0.02}), ("nca_pair", {}),
    ("robust", {"label_smoothing": 0.1}), ("bco_pair", {}), ("sppo_hard", {}), ("aot", {}),
    ("aot", {"label_smoothing": 0.1, "beta": 0.02}), ("aot_unpaired", {}), ("aot_unpaired", {"label_smoothing": 0.1}),
    ("apo_zero", {}), ("apo_down", {"beta": 0.02}), ("discopop", {}), ("discopop", {"beta": 0.02, "discopop_tau": 0.5}),
    ("sft", {}),
]
ON_LOGRATIOS = [("sigmoid", "sigmoid", {"label_smoothing": 0.1}), ("ipo_sum", "ipo", {"beta": 0.25})]


class Stub(torch.nn.Module):
    """A model whose log-probs are given."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs):
        super().__init__()
        self.log_probs = log_probs

    def forward(self, **_):
        zeros = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def trainer(policy, reference, **settings):
    """What TRL's loss methods read from their trainer."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda model: model
    )
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=settings.get("discopop_tau"))
    return SimpleNamespace(
        model=policy, ref_model=reference, accelerator=accelerator, args=args, precompute_ref_logps=False,
        aux_loss_enabled=False, use_weighting=False, ld_alpha=None, f_divergence_type="reverse_kl", alpha=0.0,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1, **settings
    )


def spread(sums, tokens):
    """Log-probs `(completions, length)` whose rows sum to `sums`, and the mask with a prompt token before them."""
    length = max(tokens)
    mask = torch.tensor([[0] + [1] * count + [0] * (length - count) for count in tokens])
    rows = [[total / count] * count + [0.0] * (length - count) for total, count in zip(sums, tokens)]
    return torch.tensor(rows), mask


def of_sums(gradient, mask):
    """The gradient of a completion's sum, which that of each of its tokens is."""
    gradient, mask = gradient.tolist(), mask[:, 1:].tolist()
    rows = [[g for g, counted in zip(*row) if counted] for row in zip(gradient, mask)]
    assert all(max(row) - min(row) <= 1e-12 * max(map(abs, row)) for row in rows)
    return [row[0] for row in rows]


def dpo(pairs, loss_type, config, ld_alpha=None):
    """TRL's loss of a batch of pairs: its mean, the gradient of that, and the mean rewards."""
    pick = lambda *columns: [column[i] for column in columns for i in pairs]
    tokens = pick(CHOSEN_TOKENS, REJECTED_TOKENS)
    log_probs, mask = spread(pick(CHOSEN, REJECTED), tokens)
    policy, reference = Stub(log_probs.requires_grad_()), Stub(spread(pick(REF_CHOSEN, REF_REJECTED), tokens)[0])
    settings = {key: config[key] for key in ("beta", "label_smoothing", "discopop_tau")}
    this = trainer(policy, reference, loss_types=[loss_type], loss_weights=[1.0], **settings)
    this.ld_alpha = ld_alpha
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    loss = trl.DPOTrainer._compute_loss(this, policy, inputs, False)
    loss.backward()
    rewards = [this._metrics["train"][f"rewards/{which}"][0] for which in ("chosen", "rejected")]
    return loss.item(), log_probs.grad, mask, rewards


def case(name, config, losses, gradient, rewards, **more):
    chosen, rejected = gradient
    return {
        "loss": name, **{**DEFAULTS, **config}, "losses": losses, "d_chosen": chosen, "d_rejected": rejected,
        "rewards_chosen": rewards[0], "rewards_rejected": rewards[1], **more,
    }


def dpo_case(name, config):
    full = {**DEFAULTS, **config}
    singles = [dpo([i], name, full) for i in range(len(CHOSEN))]
    rewards = list(zip(*(rewards for _, _, _, rewards in singles)))
    if name.startswith("aot"):
        mean, gradient, mask, _ = dpo(range(len(CHOSEN)), name, full)
        flat = [g * len(CHOSEN) for g in of_sums(gradient, mask)]
        return case(name, config, None, (flat[: len(CHOSEN)], flat[len(CHOSEN) :]), rewards, mean=mean)
    gradients = list(zip(*(of_sums(gradient, mask) for _, gradient, mask, _ in singles)))
    return case(name, config, [loss for loss, *_ in singles], gradients, rewards)


def leaves(*columns):
    return [torch.tensor(column).requires_grad_() for column in columns]


def derived(name, config, losses, chosen, rejected, rewards=None):
    losses.sum().backward()
    return case(
        name, config, losses.tolist(), (chosen.grad.tolist(), rejected.grad.tolist()),
        rewards or [(config.get("beta", 0.1) * (x - ref)).tolist() for x, ref in (
            (chosen.detach(), torch.tensor(REF_CHOSEN)), (rejected.detach(), torch.tensor(REF_REJECTED)))],
    )


def on_logratios(name, theirs, config):
    chosen, rejected = leaves(CHOSEN, REJECTED)
    full = {**DEFAULTS, **config}
    this = trainer(None, None, loss_type=theirs, beta=full["beta"], label_smoothing=full["label_smoothing"])
    ratios = chosen - torch.tensor(REF_CHOSEN), rejected - torch.tensor(REF_REJECTED)
    return derived(name, config, CPOTrainer.cpo_loss(this, *ratios)[0], chosen, rejected)


def bco_with_mean():
    chosen, rejected = leaves(CHOSEN, REJECTED)
    rewards = [0.1 * (chosen - torch.tensor(REF_CHOSEN)), 0.1 * (rejected - torch.tensor(REF_REJECTED))]
    losses = -F.logsigmoid(rewards[0] - REWARD_MEAN) - F.logsigmoid(-(rewards[1] - REWARD_MEAN))
    return {**derived("bco_pair", {}, losses, chosen, rejected), "reward_mean": REWARD_MEAN}


def reference_free(name, theirs, config):
    """CPO, SimPO and ORPO with their NLL terms, pair by pair."""
    full = {**DEFAULTS, **config}
    chosen, rejected = leaves(CHOSEN, REJECTED)
    losses, rewards = [], []
    for i, (chosen_count, rejected_count) in enumerate(zip(CHOSEN_TOKENS, REJECTED_TOKENS)):
        averages = (chosen[i : i + 1] / chosen_count, rejected[i : i + 1] / rejected_count)
        sums = (chosen[i : i + 1], rejected[i : i + 1])
        zeros = torch.zeros(1)
        forward = (*(sums if name == "cpo" else averages), zeros, zeros, -averages[0].mean())
        alpha = 0.0 if name == "simpo" else full["cpo_alpha"]
        this = trainer(
            None, None, loss_type=theirs, beta=full["beta"], label_smoothing=full["label_smoothing"],
            simpo_gamma=full["simpo_gamma"], cpo_alpha=alpha, concatenated_forward=lambda *_: forward,
        )
        kind = ORPOTrainer if name == "orpo" else CPOTrainer
        this.cpo_loss = lambda *x: CPOTrainer.cpo_loss(this, *x)
        this.odds_ratio_loss = lambda *x: ORPOTrainer.odds_ratio_loss(this, *x)
        loss, metrics = kind.get_batch_loss_metrics(this, None, {})
        losses.append(loss)
        rewards.append((metrics["rewards/chosen"], metrics["rewards/rejected"]))
    return derived(name, config, torch.stack(losses), chosen, rejected, list(zip(*rewards)))


def kto(beta, desirable_weight, undesirable_weight):
    """Completions one by one, each with the mismatched completions of the whole batch."""
    mismatched = [x - 1.0 for x in CHOSEN], [x + 0.75 * i - 5.5 for i, x in enumerate(CHOSEN)]
    result = defaultdict(list)
    for total, reference, count, label in zip(CHOSEN, REF_CHOSEN, CHOSEN_TOKENS, LABELS):
        log_probs, mask = spread([total], [count])
        kl_log_probs, kl_mask = zip(*(spread(sums, CHOSEN_TOKENS) for sums in mismatched))

        class Both(Stub):
            """The batch, or the mismatched completions, whichever is asked for."""

            def forward(self, input_ids, **_):
                rows = self.log_probs[0] if input_ids.shape[0] == 1 else self.log_probs[1]
                return Stub(rows)()

        policy = Both((log_probs.requires_grad_(), kl_log_probs[0]))
        reference = Both((spread([reference], [count])[0], kl_log_probs[1]))
        this = trainer(
            policy, reference, loss_type="kto", beta=beta, calculate_KL=True,
            desirable_weight=desirable_weight, undesirable_weight=undesirable_weight,
        )
        this._compute_kl_logps = lambda *x: trl.KTOTrainer._compute_kl_logps(this, *x)
        batch = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask, "label": torch.tensor([label])}
        batch |= {f"KL_{key}": kl_mask[0] for key in ("input_ids", "attention_mask", "completion_mask")}
        loss = trl.KTOTrainer._compute_loss(this, policy, batch, False)
        loss.backward()
        result["losses"].append(loss.item())
        result["d_logps"].append(of_sums(log_probs.grad, mask)[0])
        result["kl"] = this._metrics["train"]["kl"][0]
    return {
        "beta": beta, "desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight,
        "kl_logps": mismatched[0], "kl_reference": mismatched[1], **result,
    }


def ld_weights(alpha):
    """The weights of the tokens of the first pair, from the gradients of TRL's loss."""
    _, gradient, mask, _ = dpo([0], "sigmoid", DEFAULTS, alpha)
    rows = [(row[: count] / row[0]).tolist() for row, count in zip(gradient, mask.sum(dim=1).tolist())]
    return {"alpha": alpha, "chosen": rows[0], "rejected": rows[1]}


def main():
    with in_f64():
        pairs = [dpo_case(*entry) for entry in DPO]
        pairs += [on_logratios(*entry) for entry in ON_LOGRATIOS] + [bco_with_mean()]
        pairs += [
            reference_free("simpo", "simpo", {"beta": 2.0, "simpo_gamma": 1.0}),
            reference_free("simpo", "simpo", {"beta": 2.0, "label_smoothing": 0.1}),
            reference_free("cpo", "sigmoid", {}),
            reference_free("cpo", "sigmoid", {"label_smoothing": 0.1, "cpo_alpha": 0.5}),
            reference_free("orpo", None, {}),
        ]
        golden = {
            "made_by": "oracle/make_dpo_losses.py", "versions": common.versions(),
            "chosen": CHOSEN, "rejected": REJECTED, "reference_chosen": REF_CHOSEN, "reference_rejected": REF_REJECTED,
            "chosen_tokens": CHOSEN_TOKENS, "rejected_tokens": REJECTED_TOKENS, "labels": LABELS, "pairs": pairs,
            "kto": [kto(0.1, 1.0, 1.0), kto(0.05, 1.33, 0.8)], "ld": ld_weights(0.3),
        }
    out = common.GOLDEN / "dpo" / "losses.json"
    out.parent.mkdir(exist_ok=True)
    entries = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    out.write_text(f"{{\n{entries}\n}}\n")
    print(f"{len(pairs)} cases of {len(CHOSEN)} pairs, {len(golden['kto'])} of KTO")


if __name__ == "__main__":
    main()
