"""Measures what a private step costs, beside the steps that it is compared with."""
