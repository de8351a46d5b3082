"""What makes the rest of a multimodal language model smaller, beside its visual tokens; each composes with pruning."""
