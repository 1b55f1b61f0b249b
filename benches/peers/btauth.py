"""Echo over bittensor 11's way: bring your own HTTP (here Starlette, uvicorn, aiohttp), requests signed
by btauth/1, answers not signed, nothing encrypted."""

import asyncio
import multiprocessing
import os
import sys
import tempfile

PORT = 18092
os.environ["HOME"] = tempfile.mkdtemp()
arguments, sys.argv = sys.argv, sys.argv[:1]

import bittensor  # noqa: E402
from bittensor import http_auth, sp_core  # noqa: E402

sys.argv = arguments
from measure import series, wait_for_port  # noqa: E402

Keypair = getattr(bittensor, "Keypair", None) or sp_core.Keypair
MINER, VALIDATOR = Keypair.create_from_uri("//Miner"), Keypair.create_from_uri("//Validator")


def serve():
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def echo(request):
        body = await request.body()
        try:
            http_auth.verify(
                request.headers,
                body,
                method="POST",
                path="/echo",
                self_hotkey_ss58=MINER.ss58_address,
            )
        except http_auth.AuthError as error:
            return Response(str(error), 401)
        return Response(body)

    app = Starlette(routes=[Route("/echo", echo, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="critical")


async def ask():
    import aiohttp

    connector = aiohttp.TCPConnector(limit=64)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def echo(body):
            headers = http_auth.sign(
                VALIDATOR,
                method="POST",
                path="/echo",
                body=body,
                receiver_ss58=MINER.ss58_address,
            )
            url = f"http://127.0.0.1:{PORT}/echo"
            async with session.post(url, data=body, headers=headers) as response:
                back = await response.read()
                assert response.status == 200 and len(back) == len(body), back[:100]

        await series("bittensor 11 btauth", echo)


if __name__ == "__main__":
    server = multiprocessing.get_context("fork").Process(target=serve, daemon=True)
    server.start()
    try:
        wait_for_port(PORT)
        asyncio.run(asyncio.wait_for(ask(), 280))
    finally:
        server.terminate()
