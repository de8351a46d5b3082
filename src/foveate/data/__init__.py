"""Questions, pictures and models of your own, and of the testbed: prompts, samples, metrics, loading."""
