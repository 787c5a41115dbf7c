"""The parts of the stress test: what is loaded and how it is checked, what goes wrong, what is measured and shown."""
