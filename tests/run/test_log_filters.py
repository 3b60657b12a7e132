"""Messages of libraries are left out while a run continues, and only then."""

import logging

import pytest

from tf_efsgd.run import log_filters


def _heard(name, text, caplog):
    caplog.clear()
    logging.getLogger(name).warning(text)
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
def listening(caplog):
    """The loggers of the libraries reach pytest's handler, whatever another test set."""
    loggers = [logging.getLogger(name) for name in ('tensorflow', 'absl')]
    before = [(logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    yield caplog
    for logger, (propagate, level) in zip(loggers, before):
        logger.propagate = propagate
        logger.setLevel(level)


def test_messages_are_left_out_inside_and_heard_again_afterwards(listening):
    loggers = [logging.getLogger(name) for name in ('tensorflow', 'absl')]
    before = [list(logger.filters) for logger in loggers]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), log_filters.quiet_libraries():
            for name, text in log_filters._MESSAGES:
                assert _heard(name, f'It {text} here.', listening) == []
                assert _heard(name, 'Something else.', listening) == ['Something else.']
            1 / 0  # noqa: B018
        assert [list(logger.filters) for logger in loggers] == before
    for name, text in log_filters._MESSAGES:
        assert _heard(name, f'It {text} here.', listening) == [f'It {text} here.']
