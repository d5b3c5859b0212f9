"""Rows that heads are fitted on: coordinates, layouts of known labels, products."""
