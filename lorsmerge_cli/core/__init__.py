"""LoRS-Merging on tensors: prune, combine, scale, add. No files, no printing."""
