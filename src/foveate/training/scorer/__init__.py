"""Learned scorers for any supported model: which tokens matter, trained through a soft top-k."""
