"""Store and get over ten nodes of hivemind's DHT."""

import json
import os
import random
import sys
import tempfile
import time

os.environ["HOME"] = tempfile.mkdtemp()

from hivemind import DHT  # noqa: E402
from hivemind.utils.timed_storage import get_dht_time  # noqa: E402

from measure import percentile  # noqa: E402

NODES = 10
ROUNDS = 20 if "--quick" in sys.argv else 60
LOCAL = dict(
    host_maddrs=["/ip4/127.0.0.1/tcp/0"],
    start=True,
    nat_port_map=False,
    auto_nat=False,
    use_relay=False,
    use_auto_relay=False,
)

if __name__ == "__main__":
    nodes = [DHT(**LOCAL)]
    first = [str(address) for address in nodes[0].get_visible_maddrs()]
    nodes += [DHT(initial_peers=first, **LOCAL) for _ in range(NODES - 1)]
    gets = []
    for number in range(ROUNDS):
        writer, reader = random.sample(nodes, 2)
        key = f"hotkey {number}"
        assert writer.store(key, os.urandom(256), expiration_time=get_dht_time() + 600)
        begun = time.perf_counter()
        assert reader.get(key, latest=True)
        gets.append(time.perf_counter() - begun)
    row = {
        "stack": "hivemind DHT",
        "lookup_nodes": NODES,
        "p50_ms": percentile(gets, 0.5),
        "p95_ms": percentile(gets, 0.95),
    }
    print(json.dumps(row))
    for node in nodes:
        node.shutdown()
