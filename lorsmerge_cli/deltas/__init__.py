"""Task vectors: delta files, a fine-tune less its base, adapters."""
