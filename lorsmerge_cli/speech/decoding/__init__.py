"""From features to texts: clips by beam search, recordings window after window."""
