"""What a study found, for people: tables, statistics, figures, the headline, the report, and the best configuration.

tables       records to polars tables, one row per trial; cost and provenance apart
derived      leaderboard, agreement, importance, cost and progress, made from those
statistics   rank correlations and their bootstrap intervals
gain         the winner's gain over the default, with its interval
style        how every figure looks and is written
figures      whole stages: progress, importance, agreement
panels       single trials: slices through the space, learning curves
wording      numbers as a person reads them
headline     the text that the workflow prints at the end
summarise    all of the above below `results/summary/`
captions     what each figure shows
report       the one HTML file, from the template report.html
best         what the report and the exports are made from
trainers     the best configuration in the words of other trainers
export       the best configuration for the user's own trainer, as files
"""
