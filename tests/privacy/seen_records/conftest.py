"""The state folder of the tests beside this file."""

import pytest

from tf_efsgd.privacy import run_state


@pytest.fixture
def folder(tmp_path):
    run_state.prepare_folder(tmp_path / 'state')
    return tmp_path / 'state'
