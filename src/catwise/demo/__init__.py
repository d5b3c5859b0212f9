"""The demonstration: everything catwise does, on scenes of handwritten digits."""

from __future__ import annotations

from catwise.demo.run import METHODS, DemoConfig, DemoResult, run_demo

__all__ = ["METHODS", "DemoConfig", "DemoResult", "run_demo"]
