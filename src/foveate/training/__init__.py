"""Training: learned scorers for any supported model, and the models of the testbed."""
