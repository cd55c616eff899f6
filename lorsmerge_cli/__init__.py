"""Low-rank and sparse merging of fine-tuned speech models (LoRS-Merging)."""

__version__ = "0.1.0"
