"""One call of the client to a server of a test."""

from __future__ import annotations

import json

from rsd.protocol.tasks import Endpoint
from rsd.workers.api.client import Client, chat_body
from rsd.workers.api.replies import Reply
from tests.servers import Server, completion

KEY = "sk-test-0123456789abcdef"
COMPLETION = json.dumps(completion("A --> B")).encode()


def client(url: str, timeout: float = 5.0, key: str = KEY, ca_file: str = "") -> Client:
    """A client of this base URL; the time is in seconds."""
    return Client(Endpoint(url=url, key=key, timeout=timeout, ca_file=ca_file), pool_size=4)


def call(server: Server, timeout: float = 5.0) -> Reply:
    """The answer to one small request; raises CallFailed."""
    return client(server.url, timeout).chat(chat_body("m", None, "hello", {}))
