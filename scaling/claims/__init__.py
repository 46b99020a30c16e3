"""What is predicted, sealed before it is tested, and judged by the runs that test it."""
