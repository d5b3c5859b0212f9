"""`python -m catwise` is `catwise`."""

from __future__ import annotations

from catwise.cli import main

if __name__ == "__main__":
    main(prog_name="catwise")
