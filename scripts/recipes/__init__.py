"""Settings of published results, one file for each."""
