"""A command for the tests of `tests/forks.py`: prints a variable of its environment, or sleeps."""

import os
import sys
import time

if __name__ == "__main__":
    if sys.argv[1] == "--sleep":
        time.sleep(60)
    print(os.environ[sys.argv[1]])
