"""What crosses the border between the trainer and a worker."""
