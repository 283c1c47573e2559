"""Everything a person may write, checked once when it is read; needs neither torch nor Ray."""
