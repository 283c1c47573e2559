import torch

from prolu_tune.config.trial import SaeConfig, TrainingConfig
from prolu_tune.sae import SparseAutoencoder
from prolu_tune.training.optimizer import Adam, project_decoder_gradient, renormalize_decoder


def test_projection_removes_exactly_the_part_along_the_row():
    W_dec = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    project_decoder_gradient(grad, W_dec)
    # Along the first row: 2.2; (1, 2) - 2.2 * (0.6, 0.8) = (-0.32, 0.24).
    torch.testing.assert_close(grad, torch.tensor([[-0.32, 0.24], [0.0, 4.0]]))


def test_rows_have_norm_1_after_renormalisation_and_keep_their_direction():
    W_dec = torch.tensor([[3.0, 4.0], [0.0, -0.5]])
    renormalize_decoder(W_dec)
    torch.testing.assert_close(W_dec, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_adam_takes_the_steps_of_the_written_formula_also_from_a_restored_step():
    sae = SparseAutoencoder(SaeConfig(), 3, 5, generator=torch.Generator().manual_seed(0)).double()
    adam = Adam(sae, TrainingConfig(lr=0.01, adam_betas=(0.8, 0.95)), eps=1e-3)
    generator = torch.Generator().manual_seed(1)
    weight, m, v = sae.W_enc.detach().clone(), torch.zeros(3, 5), torch.zeros(3, 5)
    for t in range(1, 6):
        if t == 3:
            adam.set_steps_taken(9)
        n = t if t < 3 else t + 7
        for parameter in sae.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        g = sae.W_enc.grad
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        weight -= 0.01 * (m / (1 - 0.8**n)) / ((v / (1 - 0.95**n)).sqrt() + 1e-3)
        adam.step()
        torch.testing.assert_close(sae.W_enc.detach(), weight, rtol=1e-10, atol=1e-12)
    tensors = adam.tensors()
    torch.testing.assert_close(tensors["exp_avg.W_enc"], m)
    torch.testing.assert_close(tensors["exp_avg_sq.W_enc"], v)
    assert len(tensors) == 8
