import torch

from prolu_tune.sae.products import decoder_product, encoder_product


def _tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4), (4,), (4, 5), (6, 5), (5, 4)]
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes]


def test_gradients_of_both_products_are_the_true_ones():
    x, b_dec, W_enc, acts, W_dec = _tensors(torch.float64)
    assert torch.autograd.gradcheck(encoder_product, (x, b_dec, W_enc))
    assert torch.autograd.gradcheck(encoder_product, (x.detach(), b_dec, W_enc))
    assert torch.autograd.gradcheck(decoder_product, (acts, W_dec, b_dec))


def test_bfloat16_rounds_the_operands_and_keeps_float32_gradients_close_to_the_exact_ones():
    tensors = _tensors(torch.float32)
    x, b_dec, W_enc, acts, W_dec = tensors
    results = {}
    for operands in (torch.float32, torch.bfloat16):
        for tensor in tensors:
            tensor.grad = None
        pre, recon = encoder_product(x, b_dec, W_enc, operands), decoder_product(acts, W_dec, b_dec, operands)
        assert pre.dtype == recon.dtype == torch.float32
        (pre.sin().sum() + recon.sin().sum()).backward()
        assert all(tensor.grad.dtype == torch.float32 for tensor in tensors)
        results[operands] = [pre.detach(), recon.detach(), *(tensor.grad.clone() for tensor in tensors)]
    for exact, rounded in zip(results[torch.float32], results[torch.bfloat16], strict=True):
        assert not torch.equal(exact, rounded)
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.1)


def test_the_mean_is_subtracted_before_rounding_to_bfloat16():
    x = torch.full((1, 2), 1000.0) + torch.tensor([[1.0, -1.0]])
    pre = encoder_product(x, torch.full((2,), 1000.0), torch.eye(2), torch.bfloat16)
    assert pre.tolist() == [[1.0, -1.0]]
