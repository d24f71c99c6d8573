"""Networks that several scripts train, in plain operations."""
