"""One page that shows what a sweep found, self-contained and offline, and its plots as files."""
