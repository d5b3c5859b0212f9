"""Fits of head rows: penalised, ranking loss, scale and offset, back-propagation, evolution."""
