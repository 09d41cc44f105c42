"""The federation: hospitals, Byzantine ones among them, and the server that aggregates."""
