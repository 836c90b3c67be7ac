"""What the tests of chat models share: a key in the environment, and a store."""

import pytest
from chat_server import KEY

from verse.chat.store import Store


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "answers.sqlite")
