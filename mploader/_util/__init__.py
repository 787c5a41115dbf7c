"""Checks, machine resources and other small things that every part of the package may use."""
