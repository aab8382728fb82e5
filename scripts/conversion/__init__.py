"""Tables that rename the weights of other sources, one file for each source."""
