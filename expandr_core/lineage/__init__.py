"""How a number came to be: from a cell of a report back to the data, by records and manifests."""
