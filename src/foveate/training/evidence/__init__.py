"""Evidence scorers: which tokens show what is asked about, learned from the answers under the tokens really kept."""
