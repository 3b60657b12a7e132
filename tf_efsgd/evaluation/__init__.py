"""What a trained generator is worth, and the page that tells it."""
