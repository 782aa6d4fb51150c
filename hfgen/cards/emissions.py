"""Measured emissions of a run: the file of CodeCarbon in its folder, as the Hub's head of a card has them."""

import csv
from pathlib import Path
from typing import Any

from hfgen.cards.markdown import plain
from hfgen.errors import ConfigError

FILE = "emissions.csv"
"""File that CodeCarbon writes: a line for each session, with `emissions` in kilograms of CO2-equivalents."""


def emissions_of(run: Path, fine_tuned: bool) -> dict[str, Any] | None:
    """Return `co2_eq_emissions` of a run, in grams, summed over its sessions; None if nothing was measured.

    Raises ConfigError for a file without that column, and for values that are not numbers.
    """
    path = run / FILE
    if not path.is_file():
        return None
    # sum the sessions
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        grams = 1000 * sum(float(row["emissions"]) for row in rows)
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise ConfigError(f"{path}: must be a file of CodeCarbon, with numbers in its column emissions") from error
    if not rows:
        return None
    # describe the last one
    emissions = {"emissions": round(grams, 3), "source": "codecarbon"}
    emissions["training_type"] = "fine-tuning" if fine_tuned else "pre-training"
    for key, column in (("geographical_location", "country_name"), ("hardware_used", "gpu_model")):
        if rows[-1].get(column):
            emissions[key] = plain(rows[-1][column])
    return emissions
