"""The command line: one file per command, its flags, its words, its exit status."""
