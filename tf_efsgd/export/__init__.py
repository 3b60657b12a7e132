"""Writes what is handed over: exported generators and synthetic data sets."""
