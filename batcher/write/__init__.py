"""RESULTS TO FILE: the journal while the run goes on, the output when it is done."""
