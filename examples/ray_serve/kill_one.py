"""Kills one of the workers behind Ray Serve while requests come in, counts what was answered, and waits until
another stands in its place.

    python3 examples/ray_serve/kill_one.py --url http://127.0.0.1:10006 --seconds 60

Needs Linux (/proc) and the workers on this machine.
"""

import argparse
import base64
import concurrent.futures
import json
import os
import pathlib
import signal
import sys
import time
import urllib.request


def workers():
    """Ids of the `argus worker` processes that a Ray replica started."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            parent = int(path.with_name("stat").read_text().rsplit(")", 1)[1].split()[1])
            is_replica = b"ServeReplica" in pathlib.Path(f"/proc/{parent}/cmdline").read_bytes()
        except OSError:
            continue
        if b"worker" in words[1:2] and b"argus" in words[0] and is_replica:
            found.append(int(path.parent.name))
    return found


def ask(url, seed):
    body = json.dumps({
        "prompt": "a red apple",
        "seed": seed,
        "pipeline_type": "txt2img",
        "pipeline_params": {"num_inference_steps": 10},
    }).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return base64.b64decode(json.load(response)["image"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--url", default="http://127.0.0.1:10006")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--patience", type=float, default=120, help="seconds to wait for the new worker afterwards")
    parser.add_argument("--at-once", type=int, default=2)
    given = parser.parse_args()
    before = workers()
    print(f"workers: {before}")
    if len(before) < 2:
        sys.exit("this needs two workers")
    reference = ask(given.url, 7)
    start, killed, answered, failed, seed = time.monotonic(), None, 0, [], 0
    with concurrent.futures.ThreadPoolExecutor(given.at_once) as pool:
        while time.monotonic() - start < given.seconds:
            if killed is None and time.monotonic() - start > given.seconds / 4:
                killed = before[0]
                os.kill(killed, signal.SIGKILL)
                print(f"{time.monotonic() - start:.1f} s: killed {killed} after {answered} answers")
            waiting = []
            for _ in range(given.at_once):
                seed += 1
                waiting.append(pool.submit(ask, given.url, seed))
            for answer in waiting:
                try:
                    assert answer.result().startswith(b"\x89PNG")
                    answered += 1
                except Exception as error:
                    failed.append(f"{time.monotonic() - start:.1f} s: {error}")
    deadline = time.monotonic() + given.patience
    while len(after := workers()) < len(before) and time.monotonic() < deadline:
        time.sleep(0.5)
    print(f"{time.monotonic() - start:.1f} s: answered {answered}, failed {len(failed)}; workers now {after}")
    print("\n".join(failed))
    assert ask(given.url, 7) == reference, "the same seed gave another picture"
    sys.exit(0 if not failed and len(after) >= len(before) and killed not in after else 1)


if __name__ == "__main__":
    main()
