"""Searches over experiments with Ray Tune: the attack that hurts most, the defence that suffers least."""
