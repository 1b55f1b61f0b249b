"""`argus worker` replicas under Ray Serve: one address for a miner, however many machines do the work.

    pip install -r examples/ray_serve/requirements.txt
    python3 examples/ray_serve/serve_argus.py --argus target/debug/argus --replicas 2

Then give the miner this backend (config/miner.toml):

    [miner]
    backend = { kind = "http", url = "http://127.0.0.1:10006/generate", info = "http://127.0.0.1:10006/info", slots = 2 }

Each replica is an actor that owns one `argus worker` process on a free port of its machine. Ray restarts
a replica whose worker died; until it is back, its requests go to the others. A request is tried again
only when its worker could not be reached or died: a picture is a function of its seed, so that doing it
twice does no harm.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time

# A busy machine takes longer than Serve's five seconds to start its proxy.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

import aiohttp
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

# What `argus worker` takes: base64 of 16 MiB, and the words around it.
MAX_BODY = 24 << 20
# How long a request is passed on again, and the longest pause between two tries: a worker that died is replaced meanwhile.
PATIENCE_S = 60.0
LONGEST_PAUSE_S = 2.0


class Gone(Exception):
    """The worker behind a replica could not be reached, or died over a request."""


@serve.deployment
class ArgusWorker:
    """One `argus worker` process, its life that of the replica."""

    def __init__(self, argus: str, arguments: list[str], startup_s: float):
        command = [argus, "worker", "--json", "--listen", "127.0.0.1:0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"`{' '.join(command)}` ended with {self.process.wait(startup_s)}; its log says why")
        self.address = json.loads(line)["address"]
        self.session = None

    async def ask(self, method: str, path: str, body: bytes, headers: dict) -> tuple[int, bytes]:
        if self.session is None:
            self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5))
        try:
            url = f"http://{self.address}{path}"
            async with self.session.request(method, url, data=body or None, headers=headers) as response:
                return response.status, await response.read()
        except aiohttp.ClientError as error:
            if self.process.poll() is not None:
                # Without its worker a replica has the shortest queue of all, and would be given every request until
                # Serve next asks for its health.
                asyncio.get_running_loop().call_later(0.1, os._exit, 1)
            raise Gone(f"{self.address}: {error}") from None

    def check_health(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the worker at {self.address} ended with {self.process.returncode}")

    def pid(self) -> int:
        return self.process.pid

    def __del__(self):
        if getattr(self, "process", None) and self.process.poll() is None:
            self.process.terminate()


def die_with_parent():
    """On Linux: a worker whose replica was killed must not go on holding the device."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@serve.deployment
class Front:
    """`POST /generate` and `GET /info`, passed on to whichever worker has the least to do."""

    def __init__(self, workers, replicas: int):
        self.workers = workers
        self.replicas = replicas

    async def __call__(self, request: Request) -> Response:
        if request.url.path not in ("/generate", "/info"):
            return failure(404, "invalid", "there are POST /generate and GET /info")
        body = await request.body()
        if len(body) > MAX_BODY:
            return failure(413, "invalid", f"at most {MAX_BODY} bytes")
        headers = {key: request.headers[key] for key in ("authorization", "content-type") if key in request.headers}
        begun, pause = time.monotonic(), 0.25
        while time.monotonic() - begun < PATIENCE_S:
            try:
                status, answer = await self.workers.ask.remote(request.method, request.url.path, body, headers)
            except (Gone, ray.exceptions.RayError) as error:
                print(f"trying again: {error}", file=sys.stderr)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            if request.url.path == "/info" and status == 200:
                answer = self.all_together(answer)
            return Response(answer, status_code=status, media_type="application/json")
        return failure(503, "busy", "no worker could be reached")

    def all_together(self, info: bytes) -> bytes:
        """One worker's word about itself, for all of them."""
        told = json.loads(info)
        told["slots"] = told.get("slots", 1) * self.replicas
        return json.dumps(told).encode()


def failure(status: int, reason: str, message: str) -> Response:
    content = json.dumps({"error": {"reason": reason, "message": message}})
    return Response(content, status_code=status, media_type="application/json")


def application(argus: str, arguments: list[str], replicas: int, cpus: float, gpus: float):
    workers = ArgusWorker.options(
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # What waits beyond this goes to another replica, or waits in front.
        max_ongoing_requests=4,
        health_check_period_s=2,
        health_check_timeout_s=10,
    ).bind(os.path.abspath(argus), arguments, 60.0)
    # It only waits for others: on a machine whose cores are all given to workers it must find its place too.
    return Front.options(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000).bind(workers, replicas)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--argus", default="argus", help="the binary")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=10006)
    parser.add_argument("--cpus", type=float, default=1.0, help="of each replica")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each replica; fractions share a card")
    parser.add_argument("arguments", nargs="*", help="for `argus worker`, after --: --models argus-tiny --device cuda:0")
    given = parser.parse_args()
    try:
        serve.start(http_options={"host": given.host, "port": given.port})
    except TimeoutError as error:
        # Serve goes on trying, and so do we: the workers are started meanwhile.
        print(f"{error} Waiting for them.", file=sys.stderr)
    app = application(given.argus, given.arguments, given.replicas, given.cpus, given.gpus)
    serve.run(app, name="argus", route_prefix="/")
    print(f"http://{given.host}:{given.port}/generate is served by {given.replicas} workers", flush=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
