"""Other libraries, measured in an environment of their own: what runs there imports nothing of ours but their packages."""
