"""Attacks: on training (poisoning) and on a scan (evasion)."""
