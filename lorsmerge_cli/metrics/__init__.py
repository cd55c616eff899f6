"""Scores of transcripts and translations, and how far they can be trusted."""
