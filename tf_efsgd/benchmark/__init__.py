"""What a private step costs, measured."""
