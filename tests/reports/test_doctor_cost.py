from types import SimpleNamespace

import torch
from torch import nn

from hf_balancemix.reports.doctor_cost import measure_model


class Linear(nn.Module):
    """A linear classifier whose passes take a known time."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 5)
        self.calls = []

    def forward(self, pixel_values):
        self.calls.append(torch.is_grad_enabled())
        return SimpleNamespace(logits=self.layer(pixel_values.flatten(1)).tanh())


def test_by_hand():
    model = Linear()
    cost = measure_model(model, (2, 3, 4, 4), 5)
    assert cost.batch == 2
    assert cost.weight_bytes == 4 * (48 * 5 + 5)
    # Kept for the backward pass: the input (48), the output of tanh (5), and a few tables of the loss; no weights.
    assert 4 * (48 + 5) <= cost.activation_bytes <= 4 * (48 + 5 * 8)
    assert cost.training_seconds > 0
    assert cost.forward_seconds > 0
    assert model.calls.count(False) == model.calls.count(True) - 1 == 4
    assert all(p.grad is None for p in model.parameters())


def test_activations_are_those_of_an_image():
    costs = [measure_model(nn_of_images(), (batch, 3, 16, 16), 5) for batch in (2, 8)]
    assert abs(costs[0].activation_bytes / costs[1].activation_bytes - 1) < 0.05


def nn_of_images():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, pixel_values):
            return SimpleNamespace(logits=self.layers(pixel_values))

    return Net()
