"""What runs in the trainer: it starts, feeds, watches and ends the workers."""
