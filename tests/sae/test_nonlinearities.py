import pytest
import torch

from prolu_tune.config.names import NONLINEARITIES
from prolu_tune.sae.nonlinearities import nonlinearity, prolu_relu, prolu_ste, relu

PRE = torch.tensor([[2.0, 0.5, -1.0, 1.0, 0.0], [1.0, 3.0, 0.25, -0.5, 1.0]], dtype=torch.float64)
BIAS = torch.tensor([0.5, -1.0, 2.0, -1.0, 1.0], dtype=torch.float64)
#        pre + bias:  2.5   -0.5    1.0     0.0    1.0      1.5    2.0    2.25   -1.5    2.0
PROLU_ACTS = [[2.0, 0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 0.25, 0.0, 1.0]]


def _random() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pre = torch.randn(40, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(9, generator=generator, dtype=torch.float64, requires_grad=True)
    return pre, bias, torch.randn(40, 9, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("prolu", [prolu_relu, prolu_ste])
def test_prolu_passes_pre_where_both_conditions_hold_strictly(prolu):
    assert prolu(PRE, BIAS).tolist() == PROLU_ACTS


def test_relu_adds_the_bias():
    assert relu(PRE, BIAS).tolist() == (PRE + BIAS).clamp(min=0).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gate_is_that_of_the_formula_to_the_last_bit(dtype):
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(200, generator=generator, dtype=dtype)
    # Pre-activations at the threshold, one step of rounding above and below, and tiny sums.
    at = -bias
    pre = torch.stack([at, at.nextafter(at + 1), at.nextafter(at - 1), torch.randn(200, generator=generator, dtype=dtype)])
    expected = torch.where((pre + bias > 0) & (pre > 0), pre, torch.zeros_like(pre))
    assert torch.equal(prolu_ste(pre, bias), expected)
    assert torch.equal(prolu_relu(pre, bias), expected)


def test_prolu_relu_gradient_is_its_written_formula():
    pre, bias, g = _random()
    prolu_relu(pre, bias).backward(g)
    gated = torch.where((pre + bias > 0) & (pre > 0), g, 0)
    assert torch.equal(pre.grad, gated)
    torch.testing.assert_close(bias.grad, gated.sum(0), rtol=1e-13, atol=1e-13)


def test_prolu_ste_gradient_is_its_written_formula():
    pre, bias, g = _random()
    prolu_ste(pre, bias).backward(g)
    gated = torch.where((pre + bias > 0) & (pre > 0), g, 0)
    torch.testing.assert_close(pre.grad, gated * (1 + pre), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(bias.grad, (gated * pre).sum(0), rtol=1e-13, atol=1e-13)


def test_relu_gradient_is_the_true_one():
    pre, bias, _ = _random()
    assert torch.autograd.gradcheck(relu, (pre, bias))


def test_prolu_relu_is_truly_differentiated_in_pre_away_from_its_jump():
    pre, bias, _ = _random()
    assert torch.autograd.gradcheck(lambda p: prolu_relu(p, bias.detach()), (pre,), eps=1e-7)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_an_infinite_gradient_at_a_closed_gate_gives_0_not_nan(name):
    pre = torch.tensor([[-1.0, -torch.inf, 2.0]], requires_grad=True)
    bias = torch.tensor([-1.0, 0.5, -1.0], requires_grad=True)
    acts = nonlinearity(name)(pre, bias)
    assert acts.isfinite().all()
    acts.backward(torch.tensor([[torch.inf, -torch.inf, 1.0]]))
    assert pre.grad[0, :2].tolist() == [0, 0]
    assert bias.grad[:2].tolist() == [0, 0]
    assert pre.grad[0, 2] > 0


@pytest.mark.parametrize("name", ["prolu_relu", "prolu_ste"])
def test_scale_consistency_conditional_linearity(name):
    """On inputs that pass the gate together the function is linear."""
    prolu = nonlinearity(name)
    bias = torch.tensor([-0.5, 0.0, 0.7], dtype=torch.float64)
    a = torch.tensor([[0.6, 1.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([[3.0, 0.25, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(prolu(2 * a + 3 * b, bias), 2 * prolu(a, bias) + 3 * prolu(b, bias))


@pytest.mark.parametrize("name", ["prolu_relu", "prolu_ste"])
def test_scale_consistency_positive_homogeneity_above_the_threshold(name):
    prolu = nonlinearity(name)
    bias = torch.tensor([-0.5], dtype=torch.float64)
    pre = torch.tensor([[0.51], [0.75], [4.0]], dtype=torch.float64)
    for factor in (1.0, 1.5, 10.0, 1e6):
        torch.testing.assert_close(prolu(factor * pre, bias), factor * prolu(pre, bias))
    # ReLU lacks this: its bias shifts the output.
    assert not torch.allclose(relu(10 * pre, bias), 10 * relu(pre, bias))


@pytest.mark.parametrize("name", ["prolu_relu", "prolu_ste"])
def test_scale_consistency_noise_below_the_threshold_is_suppressed(name):
    pre = torch.linspace(-2, 2, 401, dtype=torch.float64)[:, None]
    acts = nonlinearity(name)(pre, torch.tensor([-0.5], dtype=torch.float64))
    assert (acts[pre <= 0.5] == 0).all()
    assert torch.equal(acts[pre > 0.5], pre[pre > 0.5])


def test_every_name_is_a_function_and_others_are_refused():
    for name in NONLINEARITIES:
        assert nonlinearity(name).__name__ == name
    with pytest.raises(ValueError, match="'gelu' is not a nonlinearity; choose one of relu"):
        nonlinearity("gelu")
