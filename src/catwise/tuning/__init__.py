"""Tuning: fits of the last layer, the choice between them, and an honest account of it."""

from __future__ import annotations
