"""What changes an update: accelerators of grokking, and the flow that replaces training."""
