"""The gateway for hospitals outside the cluster, on Ray Serve, and the way to it."""
