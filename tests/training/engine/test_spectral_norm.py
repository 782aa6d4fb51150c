"""Power iteration of spectral norms: once when told to, never in a forward pass."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from hfgen.training.engine.spectral_norm import PowerIterations


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.ReLU(), spectral_norm(nn.Linear(5, 4))).train()


def left(net: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for name, value in net.state_dict().items() if name.endswith("_u")]


def test_estimates_move_once_when_told_to_and_stay_in_forward_passes() -> None:
    net, other = network(), network()
    iterations = PowerIterations({"net": net, "other": other})
    weight = net[0].parametrizations.weight
    with torch.no_grad():
        weight.original.copy_(torch.randn(5, 6))
    u = nn.functional.normalize(weight.original.detach() @ weight[0]._v, dim=0)     # Miyato et al. 2018, algorithm 1
    iterations.advance(("net",))
    moved = left(net)
    torch.testing.assert_close(moved[0], u)
    for _ in range(3):
        net(torch.randn(2, 6)), other(torch.randn(2, 6))
    torch.testing.assert_close(left(net), moved, rtol=0, atol=0)
    torch.testing.assert_close(left(other), left(network()), rtol=0, atol=0)


def test_the_estimate_becomes_the_largest_singular_value() -> None:
    net = network()
    iterations = PowerIterations({"net": net})
    with torch.no_grad():
        net[0].parametrizations.weight.original.copy_(torch.randn(5, 6))
    for _ in range(100):
        iterations.advance(("net",))
    sigma = torch.linalg.matrix_norm(net[0].weight.detach(), 2)
    torch.testing.assert_close(sigma, torch.ones(()), rtol=1e-5, atol=0)


def test_a_network_set_to_train_again_stays_put_after_the_next_call() -> None:
    net = network()
    iterations = PowerIterations({"net": net})
    net.eval().train()
    iterations.advance(())
    before = left(net)
    net(torch.randn(2, 6))
    torch.testing.assert_close(left(net), before, rtol=0, atol=0)
