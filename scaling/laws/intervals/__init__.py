"""How sure a law is: resamples of its runs, forecasts of runs beyond others, and intervals."""
