"""Hospitals, attackers and the server as Ray actors: placement and failure, no arithmetic."""
