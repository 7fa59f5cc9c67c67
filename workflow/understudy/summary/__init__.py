"""What a study found, for people: tables, statistics, figures, the headline, the report, and the best configuration.

tables       records to polars tables, one row per trial, cost and provenance apart
derived      leaderboard, agreement and cost tables from those
statistics   bootstrap intervals, rank correlations
style        how every figure looks
figures      one function per figure, and `evidence` for what they show
headline     the text that the workflow prints at the end
report       the one HTML file
export       the best configuration for the user's own trainer
"""
