"""From audio files to batches, and from what a CTC model says of them to words."""
