"""What a person sees while a sweep runs: one live screen on a terminal, plain lines elsewhere."""
