"""Scores on file: hypotheses, records and the results document."""
