"""The command line: parse, call, print, exit code.

Importing it loads neither torch nor scikit-learn nor pyarrow; a command loads them when it runs.
"""

from __future__ import annotations

from catwise.cli.main import main

__all__ = ["main"]
