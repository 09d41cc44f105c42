"""How machines become a Ray cluster, and what runs on it."""
