"""The loader that users hold, and what stands behind it."""
