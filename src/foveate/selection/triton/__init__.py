"""The selectors on a GPU, each greedy selection in one launch."""
