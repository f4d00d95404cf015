"""A key is made once and stays, whoever asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from controlplane.store import keys
from controlplane.store.engine import Store


def test_a_key_is_random_and_stays(database_url: str, open_store: Callable[[str], Store]) -> None:
    made: list[bytes] = []
    stores = [open_store(database_url) for _ in range(4)]
    begun = threading.Barrier(len(stores))

    def ask(store: Store) -> None:
        begun.wait(30)
        with store.write() as session:
            made.append(keys.kept(session, "ray", now=5.0))

    threads = [threading.Thread(target=ask, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 4 and len(set(made)) == 1 and len(made[0]) == keys.BYTES
    with stores[0].write() as session:
        assert keys.kept(session, "ray", now=9.0) == made[0] != keys.kept(session, "another", now=9.0)
