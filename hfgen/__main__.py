"""The command line as a module: `python -m hfgen`, and `accelerate launch -m hfgen` on several processes."""

from hfgen.cli import main

if __name__ == "__main__":
    main()
