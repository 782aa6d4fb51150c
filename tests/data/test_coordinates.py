"""Model and data coordinates of points."""

import torch

from hfgen.data import load_dataset
from hfgen.data.coordinates import Coordinates


def test_points_go_to_the_model_and_come_back():
    coordinates = Coordinates(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0]))
    points = torch.tensor([[1.5, 2.0], [0.0, -2.0]])
    x = coordinates.to_model(points)
    assert torch.equal(x, torch.tensor([[1.0, 1.0], [-2.0, 0.0]]))
    assert torch.equal(coordinates.to_data(x), points)


def test_the_batches_of_a_toy_set_are_in_the_coordinates_that_it_states():
    data = load_dataset("moons")
    x = next(iter(data.batches(seed=0, batch_size=len(data))))["x"]
    assert x.mean(0).abs().max() < 1e-4 and (x.std(0) - 1).abs().max() < 1e-4
    first = data.coordinates.to_model(data.tensor(len(data)))
    assert torch.equal(first.sort(0).values, x.sort(0).values)
    assert torch.equal(data.coordinates.mean, data.mean) and torch.equal(data.coordinates.std, data.std)


def test_coordinates_survive_the_settings_of_a_network():
    coordinates = Coordinates(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.7]))
    again = Coordinates.of(coordinates.settings())
    points = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.to_data(points), coordinates.to_data(points))


def test_settings_without_coordinates_change_nothing():
    points = torch.randn(3, 2)
    assert torch.equal(Coordinates.of({"data_mean": None, "data_std": None}).to_data(points), points)


def test_images_have_no_coordinates():
    assert load_dataset("digits").coordinates is None
