"""The account of a run: records, results, test rows, memorisation."""
