"""The fast paths of the selectors, with the same results as the reference in the selectors' own files."""
