import math

import pytest
import torch

from prolu_tune.config.names import NONLINEARITIES
from prolu_tune.config.trial import SaeConfig
from prolu_tune.errors import InputError
from prolu_tune.sae import SparseAutoencoder


def _sae(nonlinearity: str = "prolu_ste", **kwargs) -> SparseAutoencoder:
    sae = SparseAutoencoder(SaeConfig(nonlinearity=nonlinearity, **kwargs), 6, 20, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        sae.b_enc.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(4))
        sae.b_dec.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(5))
    return sae


def _x(*shape: int) -> torch.Tensor:
    return 7 * torch.randn(*shape, 6, generator=torch.Generator().manual_seed(6)) + 1


def test_initialisation_is_kaiming_uniform_with_fan_in_d_sae_and_a_unit_transposed_decoder():
    sae = SparseAutoencoder(SaeConfig(), 64, 600, generator=torch.Generator().manual_seed(0))
    bound = math.sqrt(6 / 600)
    assert sae.W_enc.abs().max() <= bound
    assert sae.W_enc.abs().max() > 0.999 * bound
    assert sae.W_enc.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    torch.testing.assert_close(sae.W_dec, sae.W_enc.T / sae.W_enc.T.norm(dim=1, keepdim=True))
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()


def test_at_the_posts_size_bound_and_column_norm_are_those_of_the_post():
    sae = SparseAutoencoder(SaeConfig(), 768, 12_288, generator=torch.Generator().manual_seed(0))
    assert sae.W_enc.abs().max().item() == pytest.approx(0.0221, abs=5e-5)
    assert sae.W_enc.norm(dim=0).mean().item() == pytest.approx(0.354, abs=1e-3)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_the_model_is_its_written_formula_on_tokens_of_norm_sqrt_d_in(name):
    sae, x = _sae(name), _x(11)
    normed = x / x.norm(dim=1, keepdim=True) * math.sqrt(6)
    pre = (normed - sae.b_dec) @ sae.W_enc
    relu, prolu = (pre + sae.b_enc).clamp(min=0), torch.where((pre + sae.b_enc > 0) & (pre > 0), pre, 0)
    acts = relu if name == "relu" else prolu
    recon = acts @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(sae.encode(x), acts, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode(x)), recon, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x), recon * x.norm(dim=1, keepdim=True) / math.sqrt(6), rtol=1e-4, atol=1e-4)


def test_carrying_the_scale_through_encode_and_decode_is_calling_the_model():
    sae, x = _sae(), _x(2, 5)
    assert torch.equal(sae.decode(sae.encode(x), scale=sae.normalize(x).scale), sae(x))


def test_leading_dimensions_are_kept():
    sae, x = _sae(), _x(2, 5)
    assert sae.encode(x).shape == (2, 5, 20)
    torch.testing.assert_close(sae(x), sae(x.reshape(10, 6)).reshape(2, 5, 6))
    assert sae(x[0, 0]).shape == (6,)


@pytest.mark.parametrize("factor", [1e-20, 0.5, 3000.0])
def test_with_normalisation_latents_do_not_see_the_scale_of_a_token(factor):
    sae, x = _sae(), _x(4)
    torch.testing.assert_close(sae.encode(factor * x), sae.encode(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(factor * x), factor * sae(x), rtol=1e-4, atol=0)


def test_without_normalisation_tokens_are_taken_as_they_are():
    sae, x = _sae(normalization="none"), _x(4)
    assert torch.equal(sae.normalize(x).x, x)
    assert (sae.normalize(x).scale == 1).all()
    assert torch.equal(sae(x), sae.decode(sae.encode(x)))


def test_a_token_of_norm_0_gives_finite_numbers_and_gradients():
    sae = _sae()
    x = torch.zeros(2, 6)
    x[1] = 1
    recon = sae(x)
    recon.sum().backward()
    assert recon.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in sae.parameters())


def test_float16_tokens_with_a_norm_beyond_float16_are_normalised_in_float32():
    sae = _sae()
    x = torch.full((1, 6), 60_000.0).half()
    torch.testing.assert_close(sae.normalize(x).x, torch.ones(1, 6))


def test_the_wrong_width_is_refused_with_both_widths():
    with pytest.raises(InputError, match="5 wide, but this autoencoder reads 6"):
        _sae().encode(torch.zeros(3, 5))
