"""Hospitals outside the cluster: signed messages in place of shared processes; no Ray, no HTTP."""
