"""A second trainer, written for the tests from the mathematics alone, in the post code's mean form.

Loss: mean over batch and d_in of the squared error + c * mean over the batch of the penalty; Adam's eps is 1e-8. No
line is shared with the package but the random numbers of resampling.
"""

import math

import torch
from torch import Tensor

from prolu_tune.training.numerics import seeded_generator


class NaiveTrainer:
    """Full-batch formulas, autograd, Adam by hand; nothing is fast."""

    def __init__(
        self, weights: dict[str, Tensor], *, nonlinearity: str, penalty: str, c: float, lr: float, batch_size: int
    ) -> None:
        """Starts from given weights; the penalty and gate are named as in the package."""
        self.w = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
        self.m = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        self.v = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        self.nonlinearity, self.penalty, self.c, self.lr = nonlinearity, penalty, c, lr
        self.batch_size = batch_size
        self.t = 0
        self.fired: list[Tensor] = []

    def normed(self, x: Tensor) -> Tensor:
        """Every token at norm sqrt(d_in)."""
        return x / x.pow(2).sum(1, keepdim=True).sqrt() * math.sqrt(x.shape[1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(acts, recon) of normalised tokens; the synthetic gradients come from detached factors."""
        pre, bias = (x - self.w["b_dec"]) @ self.w["W_enc"], self.w["b_enc"]
        gate = (pre + bias > 0) & (pre > 0)
        if self.nonlinearity == "relu":
            acts = torch.maximum(pre + bias, torch.zeros_like(pre))
        elif self.nonlinearity == "prolu_relu":
            acts = torch.where(gate, pre + bias - bias.detach(), 0)
        else:
            total = pre + bias
            acts = torch.where(gate, pre + pre.detach() * (total - total.detach()), 0)
        return acts, acts @ self.w["W_dec"] + self.w["b_dec"]

    def step(self, x: Tensor, lr_factor: float) -> float:
        """One step on raw tokens; gives the loss."""
        x = self.normed(x)
        acts, recon = self.forward(x)
        sparsity = acts if self.penalty == "l1" else torch.sqrt(acts + 1e-6)
        loss = (recon - x).pow(2).mean() + self.c * sparsity.sum(1).mean()
        for tensor in self.w.values():
            tensor.grad = None
        loss.backward()
        self.fired.append((acts > 0).sum(0))
        self.t += 1
        with torch.no_grad():
            W_dec = self.w["W_dec"]
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            for name, tensor in self.w.items():
                self.m[name] = 0.9 * self.m[name] + 0.1 * tensor.grad
                self.v[name] = 0.999 * self.v[name] + 0.001 * tensor.grad**2
                m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.999**self.t)
                tensor -= self.lr * lr_factor * m / (v.sqrt() + 1e-8)
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        return loss.item()

    @torch.no_grad()
    def resample(
        self, x: Tensor, *, seed: int, step: int, window: int, dead_frequency: float, max_norm: float, scale: float
    ) -> int:
        """Replaces dead latents from all fresh tokens at once; gives their number."""
        window_fired = torch.stack(self.fired[-window:])
        dead = (window_fired.sum(0) < dead_frequency * window * self.batch_size).nonzero().flatten().tolist()
        alive = [i for i in range(len(self.w["b_enc"])) if i not in dead]
        normed = self.normed(x)
        error = (self.forward(normed)[1] - normed).pow(2).sum(1).double()
        error[x.norm(dim=1) >= max_norm] = 0
        # The same exponential variables, in the same order: largest weight / E first.
        generator = seeded_generator("resampling", seed, step)
        exponential = torch.cat(
            [
                torch.empty(self.batch_size, dtype=torch.float64).exponential_(generator=generator)
                for _ in range(len(x) // self.batch_size)
            ]
        )
        drawn = (error / exponential).argsort(descending=True)[: len(dead)]
        mean_norm = sum(self.w["W_enc"][:, i].norm() for i in alive) / len(alive)
        for latent, token in zip(dead, drawn.tolist(), strict=True):
            direction = x[token] / x[token].norm()
            self.w["W_dec"][latent] = direction
            self.w["W_enc"][:, latent] = direction * mean_norm * scale
            self.w["b_enc"][latent] = 0
        for name, dim in (("W_enc", 1), ("W_dec", 0), ("b_enc", 0)):
            mean = self.v[name].index_select(dim, torch.tensor(alive)).mean()
            self.m[name].index_fill_(dim, torch.tensor(dead), 0)
            self.v[name].index_fill_(dim, torch.tensor(dead), mean.item())
        return len(dead)
