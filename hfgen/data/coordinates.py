"""Coordinates of points: models see standardised points, users see points in data coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coordinates:
    """The map between model and data coordinates, x_data = std * x + mean; `mean` and `std` are scalars or (D,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Coordinates":
        """Return the coordinates in a network's configuration, `data_mean` and `data_std`; None there means 0 and 1."""
        mean, std = config["data_mean"], config["data_std"]
        return cls(
            torch.as_tensor(0.0 if mean is None else mean, dtype=torch.float64),
            torch.as_tensor(1.0 if std is None else std, dtype=torch.float64),
        )

    def to_data(self, x: Tensor) -> Tensor:
        """Return points x (B, D) of a model in data coordinates, in the dtype and on the device of x."""
        return x * self.std.to(x) + self.mean.to(x)

    def to_model(self, points: Tensor) -> Tensor:
        """Return points (B, D) in data coordinates standardised for a model, in their dtype and on their device."""
        return (points - self.mean.to(points)) / self.std.to(points)

    def settings(self) -> dict[str, Any]:
        """Return `data_mean` and `data_std` as settings of a network."""
        return {"data_mean": self.mean.tolist(), "data_std": self.std.tolist()}
