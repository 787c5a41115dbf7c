"""What runs in the child."""
