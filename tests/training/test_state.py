"""Training against the second trainer in `naive.py`, and the rules of rows and windows."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from naive import NaiveTrainer

from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import TrialConfig
from prolu_tune.training.optimizer import Adam
from prolu_tune.training.schedule import lr_factor
from prolu_tune.training.state import Trainer

D_IN, D_SAE, BATCH = 12, 40, 32
ARCHITECTURES = list(itertools.product(NONLINEARITIES, PENALTIES))
SEED = 5


def _config(nonlinearity: str, penalty: str, *, resampling: dict) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "seed": SEED,
            "sae": {"nonlinearity": nonlinearity, "penalty": penalty, "d_sae": D_SAE},
            "training": {
                "num_tokens": 58 * BATCH if resampling["steps"] else 50 * BATCH,
                "batch_size": BATCH,
                "l1_coefficient": 0.5,
                "lr": 3e-3,
                "warmup_steps": 5,
                "cooldown_start": 40,
                "cooldown_steps": 8,
                "log_every": 1,
            },
            "resampling": resampling,
        }
    )


def _stream(dtype: torch.dtype = torch.float32) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    directions = torch.randn(60, D_IN, generator=generator, dtype=torch.float64)
    while True:
        mix = torch.rand(BATCH, 60, generator=generator, dtype=torch.float64).pow(12)
        scale = torch.rand(BATCH, 1, generator=generator, dtype=torch.float64) * 20 + 1
        yield (scale * (mix @ directions + 0.3)).to(dtype)


RESAMPLING = {
    "steps": [20, 35],
    "window_steps": 12,
    "num_tokens": 4 * BATCH,
    "dead_frequency": 0.3,
    "max_candidate_norm": 150.0,
}
NO_RESAMPLING = {"steps": []}


class AnyPrecisionTrainer(Trainer):
    """Takes batches as they come, so that the same code can be followed in float64."""

    def next_batch(self, batches: Iterator[torch.Tensor]) -> torch.Tensor:
        return next(batches)


def _both(nonlinearity: str, penalty: str, *, dtype: torch.dtype, resampling: dict) -> tuple[Trainer, NaiveTrainer, list[int]]:
    """Returns the package's trainer and the naive one after 50 steps, and how many latents each resampling replaced."""
    config = _config(nonlinearity, penalty, resampling=resampling)
    plan = plan_trial(config, d_in=D_IN)
    assert plan.num_steps == 50
    ours = AnyPrecisionTrainer(config, plan)
    ours.sae.to(dtype)
    ours.adam = Adam(ours.sae, config.training, eps=plan.adam_eps)
    weights = {name: parameter.detach() for name, parameter in ours.sae.named_parameters()}
    naive = NaiveTrainer(weights, nonlinearity=nonlinearity, penalty=penalty, c=0.5 / D_IN, lr=3e-3, batch_size=BATCH)
    stream, their_stream, replaced = _stream(dtype), _stream(dtype), []
    for step in range(plan.num_steps):
        if ours.resampling_due():
            event = ours.resample(stream, should_stop=lambda: False)
            fresh = torch.cat(list(itertools.islice(their_stream, 4)))
            dead = naive.resample(fresh, seed=SEED, step=step, window=12, dead_frequency=0.3, max_norm=150.0, scale=0.2)
            assert event is not None
            assert event["num_dead"] == event["num_resampled"] == dead
            replaced.append(dead)
        ours.train_step(next(stream))
        loss = naive.step(next(their_stream), lr_factor(step, plan=plan, cooldown_factor=0.1))
        assert ours.row()["loss"] / D_IN == pytest.approx(loss, rel=1e-4 if dtype == torch.float32 else 1e-9)
    return ours, naive, replaced


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("resampling", [NO_RESAMPLING, RESAMPLING], ids=["plain", "resampled"])
@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
def test_50_steps_equal_the_naive_trainer_in_the_mean_form(nonlinearity, penalty, resampling, dtype):
    # The root's gradient of up to 500 amplifies rounding: float32 differed by 2e-3 with sqrt_l1 and by 2e-7 with l1, while
    # float64 (2e-13 and 4e-16) shows that it is rounding and nothing else.
    rounding = 1e-11 if dtype == torch.float64 else {"l1": 1e-5, "sqrt_l1": 1e-2}[penalty]
    ours, naive, replaced = _both(nonlinearity, penalty, dtype=dtype, resampling=resampling)
    assert len(replaced) == len(resampling["steps"])
    assert all(0 < dead < D_SAE for dead in replaced)
    for name, parameter in ours.sae.named_parameters():
        torch.testing.assert_close(parameter.detach(), naive.w[name].detach(), rtol=rounding, atol=rounding)


def test_decoder_rows_keep_norm_1_and_weights_have_moved():
    ours, _, _ = _both("prolu_ste", "l1", dtype=torch.float32, resampling=NO_RESAMPLING)
    torch.testing.assert_close(ours.sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    fresh = Trainer(ours.config, ours.plan)
    assert all(not torch.equal(a, b) for a, b in zip(ours.sae.parameters(), fresh.sae.parameters(), strict=True))


def test_a_row_averages_over_the_steps_since_the_last_one():
    config = _config("relu", "sqrt_l1", resampling=NO_RESAMPLING)
    every, once = (Trainer(config, plan_trial(config, d_in=D_IN)) for _ in range(2))
    rows = []
    for x in itertools.islice(_stream(), 7):
        every.train_step(x)
        rows.append(every.row())
        once.train_step(x)
    row = once.row()
    for name in ("loss", "mse", "l0", "l1", "sqrt_l1"):
        assert row[name] == pytest.approx(sum(r[name] for r in rows) / 7, rel=1e-6)
    assert row["step"] == 7
    assert row["lr"] == rows[-1]["lr"] == 3e-3
    assert [r["lr"] for r in rows[:5]] == pytest.approx([0, 0.6e-3, 1.2e-3, 1.8e-3, 2.4e-3])


def test_a_rows_metrics_are_the_formulas_on_the_batch_before_the_step():
    config = _config("prolu_ste", "sqrt_l1", resampling=NO_RESAMPLING)
    trainer = Trainer(config, plan_trial(config, d_in=D_IN))
    x = next(_stream())
    acts = trainer.sae.encode(x).detach()
    recon, normed = trainer.sae.decode(acts).detach(), trainer.sae.normalize(x).x
    trainer.train_step(x)
    row = trainer.row()
    assert row["mse"] == pytest.approx((recon - normed).square().mean().item(), rel=1e-5)
    assert row["l0"] == (acts > 0).sum().item() / BATCH
    assert row["l1"] == pytest.approx(acts.sum(1).mean().item(), rel=1e-5)
    assert row["sqrt_l1"] == pytest.approx(acts.sqrt().sum(1).mean().item(), rel=1e-5)
    assert row["loss"] == pytest.approx(row["mse"] * D_IN + 0.5 * (acts + 1e-6).sqrt().sum(1).mean().item(), rel=1e-5)
    assert row["frac_alive"] == (acts > 0).any(0).double().mean().item()


def test_firings_are_counted_over_the_window_alone():
    config = _config("relu", "l1", resampling=RESAMPLING)
    trainer = Trainer(config, plan_trial(config, d_in=D_IN))
    fired = []
    for step, x in enumerate(itertools.islice(_stream(), 20)):
        fired.append((trainer.sae.encode(x) > 0).sum(0))
        trainer.train_step(x)
        start = 0 if step < 8 else 8  # the window of 12 before the resampling at 20 starts at 8
        share, tokens = trainer.frac_alive()
        counts = torch.stack(fired[start:]).sum(0)
        assert tokens == (step + 1 - start) * BATCH
        assert share == (counts >= 0.3 * tokens).double().mean().item()


def test_the_stream_ending_early_or_in_another_shape_says_what_was_due():
    config = _config("relu", "l1", resampling=NO_RESAMPLING)
    trainer = Trainer(config, plan_trial(config, d_in=D_IN))
    with pytest.raises(RuntimeError, match=r"has ended at step 0; \(32, 12\) was due, 50 times"):
        trainer.next_batch(iter([]))
    with pytest.raises(RuntimeError, match=r"gave a batch of shape \(31, 12\)"):
        trainer.next_batch(iter([torch.zeros(31, 12)]))
