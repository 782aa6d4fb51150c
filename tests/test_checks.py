"""Checks of settings and arguments, and the words of their errors."""

import math

import numpy as np
import pytest

from hfgen.checks import check_int, nearest_sizes, require_choice, require_int, require_number, require_size
from hfgen.errors import ConfigError, ConfigTypeError


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: require_int("n", 0), ConfigError, "n must be an int in [1, 16777216], got 0"),
        (lambda: require_int("n", 2.0), ConfigTypeError, "n must be an int in [1, 16777216], got 2.0"),
        (lambda: require_int("n", True), ConfigTypeError, "n must be an int in [1, 16777216], got True"),
        (lambda: require_int("n", 0, 1, None), ConfigError, "n must be an int >= 1, got 0"),
        (lambda: check_int("n", 9, 0, 8), ConfigError, "n must be an int in [0, 8], got 9"),
        (lambda: require_number("x", math.nan, 0, 1), ConfigError, "x must be a number in [0, 1], got nan"),
        (lambda: require_number("x", "1", 0, 1), ConfigTypeError, "x must be a number in [0, 1], got '1'"),
        (lambda: require_number("x", 0, 0, 1, "(]"), ConfigError, "x must be a number in (0, 1], got 0"),
        (lambda: require_number("x", 1, 0, 1, "()"), ConfigError, "x must be a number in (0, 1), got 1"),
        (lambda: require_number("x", 0, 0, math.inf, "()"), ConfigError, "x must be a number > 0, got 0"),
        (lambda: require_number("x", -1, 0, math.inf), ConfigError, "x must be a number >= 0, got -1"),
        (lambda: require_choice("kind", "c", ("a", "b")), ConfigError, "kind must be one of a, b, got 'c'"),
        (lambda: require_choice("kind", ["a"], {"a": 1}), ConfigError, "kind must be one of a, got ['a']"),
        (lambda: require_size("size", (1, 2, 3)), ConfigError, "size must be an int or a pair (height, width), got "),
        (lambda: require_size("size", (8, 0)), ConfigError, "size must be an int in [1, 4096], got 0"),
    ],
)
def test_an_error_names_the_field_the_allowed_values_and_the_given_one(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(words) and type(caught.value) is error


def test_values_inside_their_bounds_are_returned():
    assert require_int("n", 3, 1, 3) == 3 and require_number("x", 1, 0, 1) == 1.0
    assert require_size("size", 8) == (8, 8) and require_size("size", [8, 4]) == (8, 4)


def test_only_arguments_may_be_integers_of_numpy():
    assert type(check_int("n", np.int64(3))) is int
    with pytest.raises(ConfigTypeError):
        require_int("n", np.int64(3))


def test_the_nearest_sizes_are_divisible_and_large_enough():
    assert nearest_sizes(28, 9, 8, 8) == "24x8 and 32x16"
    assert nearest_sizes(3, 3, 8, 8) == "8x8"
