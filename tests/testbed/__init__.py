"""Real systems for the tests to run against, made of the real programs on one machine."""
