"""What pruning costs and saves: suites of questions, answers, statistics, tables and plots."""
