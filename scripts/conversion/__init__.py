"""Tables that rename the weights of other code bases, one file per source."""
