"""What a fine-tune's layers do on audio: statistics that RegMean and Fisher merging weigh deltas by."""
