"""The command line: one module per group of verbs, each importing what is heavy only when its verb runs."""
