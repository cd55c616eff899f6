"""Utterances in, transcripts and fine-tuned models out."""
