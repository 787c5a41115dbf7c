"""Elements into one batch in given memory, and back: no processes, no shared memory."""
