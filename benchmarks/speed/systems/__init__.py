"""The systems that are measured, a file each; a peer's file is imported in the peers' own environment only."""
