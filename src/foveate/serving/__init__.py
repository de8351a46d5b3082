"""Pruning inside servers: the same methods as in transformers, behind a server's own prompts, batches and caches."""
