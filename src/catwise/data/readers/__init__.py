"""Readers of the field's data sets, one module each, in their official layouts."""
