"""Checkpoint and delta files: lazy reading, atomic writing, ancestry."""
