"""Who makes what, and who is to blame: pure state machines without I/O, clock or threads."""
