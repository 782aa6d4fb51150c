"""The logger `hfgen`: its levels, its streams, and progress bars."""

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr

import pytest
from tqdm import tqdm

from hfgen import logging
from hfgen.data.load import _in_threads
from tests.training.runs import train_here


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """Restore the level and the bars."""
    yield
    logging.set_verbosity_info()
    logging.enable_progress_bar()


def test_information_goes_to_the_output_and_warnings_to_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.get_logger("mine")
    assert logger.name == "hfgen.mine" and logging.get_verbosity() == logging.INFO
    logger.debug("nothing")
    logger.info("step 3")
    logger.warning("look here")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("step 3\n", "look here\n")


def test_each_level_hides_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.get_logger()
    for set_level, shown in (
        (logging.set_verbosity_debug, ["debug", "info", "warning", "error"]),
        (logging.set_verbosity_info, ["info", "warning", "error"]),
        (logging.set_verbosity_warning, ["warning", "error"]),
        (logging.set_verbosity_error, ["error"]),
    ):
        set_level()
        for level in ("debug", "info", "warning", "error"):
            getattr(logger, level)(level)
        told = capsys.readouterr()
        assert (told.out + told.err).split() == shown


def test_a_message_stands_above_an_open_bar() -> None:
    stream = io.StringIO()
    with redirect_stderr(stream), tqdm(total=2, file=stream) as bar:
        logging.get_logger().warning("look here")
        bar.update()
    lines = stream.getvalue().replace("\r", "\n").split("\n")
    assert "look here" in lines


@pytest.mark.parametrize(("level", "shown"), [("error", False), ("info", True), ("nonsense", True)])
def test_the_level_at_the_start_comes_from_the_environment(level: str, shown: bool) -> None:
    program = "from hfgen.logging import get_logger; get_logger().info('hello')"
    environment = {"HFGEN_VERBOSITY": level}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stdout == "hello\n") == shown


def test_training_is_silent_with_errors_only_and_no_bars(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    train_here("ddpm", tmp_path / "silent", "--max-steps", "2")
    told = capsys.readouterr()
    assert told.out == told.err == ""
    logging.set_verbosity_info()
    train_here("ddpm", tmp_path / "told", "--max-steps", "2")
    assert "finished step 2" in capsys.readouterr().out


def test_the_bars_of_data_can_be_switched_off() -> None:
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    stream = io.StringIO()
    with redirect_stderr(stream):
        assert list(_in_threads(lambda i: i * i, 3, "squares")) == [0, 1, 4]
    assert stream.getvalue() == "" and not logging.is_progress_bar_enabled()
