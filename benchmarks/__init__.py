"""What the parts cost, measured; a package of its own, because a library brings another one of this name."""
