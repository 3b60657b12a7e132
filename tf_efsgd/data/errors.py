"""What is raised when the data cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """The data cannot be used as asked; the message is one line that says what to do."""

    def __init__(self, message: str):
        super().__init__(' '.join(message.split()))
