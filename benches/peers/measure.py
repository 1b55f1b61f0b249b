"""The measurement that all peers share: the same bodies, counts and percentiles as `benches/query`."""

import asyncio
import json
import os
import sys
import time

AT_ONCE = 32
QUICK = "--quick" in sys.argv


def percentile(times, share):
    ordered = sorted(times)
    return round(1e3 * ordered[min(int(len(ordered) * share), len(ordered) - 1)], 3)


async def series(stack, echo, counts=((1 << 10, 2000), (1 << 20, 100)), body=os.urandom):
    """Prints one row a size. `echo(body)` sends a body, waits for it to come back and checks it."""
    for size, count in counts:
        if QUICK:
            count = max(count // 10, 5)
        payload = body(size)
        for _ in range(10):
            await echo(payload)
        alone = []
        for _ in range(count):
            begun = time.perf_counter()
            await echo(payload)
            alone.append(time.perf_counter() - begun)

        permits, together = asyncio.Semaphore(AT_ONCE), []

        async def one():
            async with permits:
                begun = time.perf_counter()
                await echo(payload)
                together.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(2 * count)))
        elapsed = time.perf_counter() - begun
        row = {
            "stack": stack,
            "bytes": size,
            "seq_p50_ms": percentile(alone, 0.5),
            "seq_p99_ms": percentile(alone, 0.99),
            "seq_rps": round(count / sum(alone), 1),
            "c32_rps": round(2 * count / elapsed, 1),
            "c32_p50_ms": percentile(together, 0.5),
            "c32_p99_ms": percentile(together, 0.99),
        }
        print(json.dumps(row), flush=True)


def wait_for_port(port, seconds=30):
    import socket

    end = time.time() + seconds
    while time.time() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")
