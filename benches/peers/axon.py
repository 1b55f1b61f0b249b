"""Echo over bittensor 10's axon and dendrite: plain HTTP, the header signed, the body not."""

import asyncio
import multiprocessing
import os
import sys
import tempfile
from typing import Optional

PORT = 18094
home = tempfile.mkdtemp()
os.environ["HOME"] = home
arguments, sys.argv = sys.argv, sys.argv[:1]  # bittensor parses the command line itself

import bittensor  # noqa: E402
import uvicorn  # noqa: E402
from bittensor.core import axon as axon_module, dendrite as dendrite_module  # noqa: E402
from bittensor.core.chain_data import AxonInfo  # noqa: E402
from bittensor.utils import networking  # noqa: E402
from bittensor_wallet import Wallet  # noqa: E402

sys.argv = arguments
from measure import series, wait_for_port  # noqa: E402


def stay_local(*_args, **_kwargs):
    return "127.0.0.1"


# Both ask a web service for the machine's address, and listen on all interfaces.
networking.get_external_ip = stay_local
for module in (axon_module, dendrite_module):
    if hasattr(module, "networking"):
        module.networking.get_external_ip = stay_local
plain_init = uvicorn.Config.__init__


def local_init(self, *args, **kwargs):
    if kwargs.get("host") == "0.0.0.0":
        kwargs["host"] = "127.0.0.1"
    plain_init(self, *args, **kwargs)


uvicorn.Config.__init__ = local_init


class Echo(bittensor.Synapse):
    data: str = ""
    out: Optional[str] = None

    def deserialize(self):
        return self.out


def wallet(name):
    made = Wallet(name=name, hotkey="default", path=os.path.join(home, "wallets"))
    made.create_new_coldkey(use_password=False, overwrite=True, suppress=True)
    made.create_new_hotkey(use_password=False, overwrite=True, suppress=True)
    return made


def forward(synapse: Echo) -> Echo:
    synapse.out = synapse.data
    return synapse


def serve(tell):
    own = wallet("miner")
    server = bittensor.Axon(
        wallet=own, port=PORT, ip="127.0.0.1", external_ip="127.0.0.1", external_port=PORT
    )
    server.attach(forward_fn=forward)
    server.start()
    tell.put(own.hotkey.ss58_address)
    while True:
        asyncio.run(asyncio.sleep(3600))


async def ask(hotkey):
    target = AxonInfo(
        version=1, ip="127.0.0.1", port=PORT, ip_type=4, hotkey=hotkey, coldkey=hotkey
    )
    client = bittensor.Dendrite(wallet=wallet("validator"))

    async def echo(text):
        answer = await client.call(target, Echo(data=text), timeout=60)
        assert answer == text

    # Text, since a synapse is JSON; slower than the others, so fewer rounds.
    counts = ((1 << 10, 500), (1 << 20, 40))
    await series("bittensor 10 axon", echo, counts, body=lambda size: "x" * size)
    await client.aclose_session()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    server = context.Process(target=serve, args=(queue,), daemon=True)
    server.start()
    try:
        hotkey = queue.get(timeout=60)
        wait_for_port(PORT)
        asyncio.run(asyncio.wait_for(ask(hotkey), 280))
    finally:
        server.terminate()
