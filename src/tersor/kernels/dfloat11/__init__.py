"""The buffers of DFloat11 checkpoints, decoded."""
