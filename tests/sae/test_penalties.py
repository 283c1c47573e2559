import pytest
import torch

from prolu_tune.config.names import PENALTIES
from prolu_tune.sae.penalties import l1, penalty, sqrt_l1

ACTS = torch.tensor([[4.0, 0.0, 9.0], [0.0, 0.0, 0.25]], dtype=torch.float64)


def test_penalties_give_the_numbers_worked_out_by_hand():
    assert l1(ACTS, 1e-6).tolist() == [13, 0.25]
    assert sqrt_l1(ACTS, 0.0).tolist() == [5, 0.5]
    assert sqrt_l1(torch.zeros(1, 3, dtype=torch.float64), 1e-6).item() == pytest.approx(3e-3)


def test_the_gradient_of_sqrt_l1_at_0_is_finite():
    acts = torch.zeros(1, 2, requires_grad=True)
    sqrt_l1(acts, 1e-6).sum().backward()
    assert acts.grad.tolist() == [[pytest.approx(500.0, rel=1e-4)] * 2]


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_are_the_true_ones(name):
    acts = (ACTS + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: penalty(name)(a, 1e-6), (acts,))


def test_every_name_is_a_function_and_others_are_refused():
    for name in PENALTIES:
        assert penalty(name).__name__ == name
    with pytest.raises(ValueError, match="'l2' is not a penalty; choose one of l1"):
        penalty("l2")
