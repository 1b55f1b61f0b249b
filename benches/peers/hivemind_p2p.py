"""Echo over hivemind: go-libp2p behind a daemon, encrypted, not signed. Once by its unary calls, once
by a stream of its own for each call."""

import asyncio
import os
import tempfile

os.environ["HOME"] = tempfile.mkdtemp()

import uvloop  # noqa: E402
from hivemind.p2p import P2P  # noqa: E402
from hivemind.proto import runtime_pb2  # noqa: E402

from measure import series  # noqa: E402

LOCAL = dict(
    host_maddrs=["/ip4/127.0.0.1/tcp/0"],
    nat_port_map=False,
    auto_nat=False,
    use_relay=False,
    dht_mode="server",
)
# Frames of the stream's own: a length and the body.
LENGTH = 4


async def unary_echo(request, _context):
    return request


async def stream_echo(_info, reader, writer):
    length = await reader.readexactly(LENGTH)
    body = await reader.readexactly(int.from_bytes(length, "big"))
    writer.write(length + body)
    await writer.drain()
    writer.close()


async def main():
    server = await P2P.create(**LOCAL)
    client = await P2P.create(initial_peers=await server.get_visible_maddrs(), **LOCAL)
    await client.wait_for_at_least_n_peers(1)
    message = runtime_pb2.ExpertRequest
    await server.add_protobuf_handler("echo", unary_echo, message)
    await server.add_binary_stream_handler("stream", stream_echo)

    async def unary(body):
        request = message(uid="echo", metadata=body)
        answer = await client.call_protobuf_handler(server.peer_id, "echo", request, message)
        assert len(answer.metadata) == len(body)

    async def stream(body):
        _, reader, writer = await client.call_binary_stream_handler(server.peer_id, "stream")
        writer.write(len(body).to_bytes(LENGTH, "big") + body)
        await writer.drain()
        back = await reader.readexactly(LENGTH + len(body))
        writer.close()
        assert len(back) == LENGTH + len(body)

    await series("hivemind unary", unary)
    await series("hivemind stream", stream)
    await client.shutdown()
    await server.shutdown()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
