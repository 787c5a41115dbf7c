"""Statistics, the diagnosis of a bottleneck, and the trace."""
