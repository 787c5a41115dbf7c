"""The worker processes: what runs in them, what decides, and what watches over them."""
