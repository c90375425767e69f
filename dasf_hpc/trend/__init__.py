"""Trends: many runs over time, and where they began to be slower or faster."""
