"""What networks learn: images, modular pairs, parity and sequences, on the device and split."""
