"""What ``import fedplatform`` offers: whole experiments from Python, without a folder to care for."""
