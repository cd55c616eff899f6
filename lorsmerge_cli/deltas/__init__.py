"""Task vectors: delta files, fine-tunes minus their base, adapters."""
