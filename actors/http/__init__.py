"""Ray Serve's HTTP proxy: how it is started, and what guards it."""
