"""The parts of the stress test: workload, checks, faults, measurements, live view and report."""
