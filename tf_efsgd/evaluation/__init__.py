"""Measures how good generated images are: compares images with images and knows no run."""
