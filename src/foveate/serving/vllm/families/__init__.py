"""One model family a file: its vLLM classes with pruning mixed in."""
