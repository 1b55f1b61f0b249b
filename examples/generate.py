#!/usr/bin/env python3
"""Makes a picture through an Argus gateway, with nothing but Python's standard library.

    export ARGUS_API_KEY=argus-…            # from `argus keys new NAME`
    python3 examples/generate.py "a red apple" -o apple.png

Shows the steps while they happen, waits and tries again when the network is full, and exits with 1 and
the API's own words when something is wrong.
"""

import argparse
import base64
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request


class ApiError(Exception):
    """The API's answer when it is not a picture."""

    def __init__(self, status, error, retry_after=None):
        super().__init__(error.get("message", f"status {status}"))
        self.status = status
        self.code = error.get("code")
        self.retry_after = retry_after


def events(response):
    """Splits a response into server-sent events: (name, data)."""
    name, data = "", []
    for line in response:
        line = line.decode().rstrip("\r\n")
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield name, "\n".join(data)
            name, data = "", []


def generate(url, key, body, progress):
    """Asks for one picture; calls progress(event) for each step; returns (png, details)."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/images/generations",
        data=json.dumps({**body, "stream": True}).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        response = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as error:
        retry = error.headers.get("retry-after")
        try:
            detail = json.load(error).get("error", {})
        except ValueError:
            detail = {}
        raise ApiError(error.code, detail, int(retry) if retry else None) from None
    with response:
        for name, data in events(response):
            if data == "[DONE]":
                break
            event = json.loads(data)
            if name == "image_generation.progress":
                progress(event)
            elif name == "image_generation.completed":
                return base64.b64decode(event.pop("b64_json")), event
            elif name == "error":
                raise ApiError(200, event["error"])
    raise ApiError(200, {"message": "the stream ended without a picture"})


def show(event):
    """One line that is written over at each step."""
    if event["queue_position"]:
        text = f"in the queue, {event['queue_position']} before"
    else:
        done = round(24 * event["step"] / max(event["of"], 1))
        text = f"[{'#' * done}{'.' * (24 - done)}] step {event['step']} of {event['of']}"
    print(f"\r{text:60}", end="", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description="Make a picture through an Argus gateway.")
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", default="picture.png", help="where the PNG goes [%(default)s]")
    parser.add_argument("--url", default=os.environ.get("ARGUS_API", "http://127.0.0.1:8080"), help="[%(default)s]")
    parser.add_argument("--key", default=os.environ.get("ARGUS_API_KEY"), help="API key [$ARGUS_API_KEY]")
    parser.add_argument("--model", help="a model of /v1/models [the first that makes pictures]")
    parser.add_argument("--size", help="WIDTHxHEIGHT [the model's]")
    parser.add_argument("--steps", type=int, help="denoising steps [the model's]")
    parser.add_argument("--guidance", type=float, help="guidance scale [the model's]")
    parser.add_argument("--negative", dest="negative_prompt", help="what the picture must not show")
    parser.add_argument("--tries", type=int, default=5, help="how often to try when the network is full [%(default)s]")
    arguments = parser.parse_args()
    if not arguments.key:
        parser.error("an API key is needed: --key argus-… or ARGUS_API_KEY; `argus keys new NAME` makes one")
    fields = ("prompt", "model", "size", "steps", "guidance", "negative_prompt")
    body = {field: value for field in fields if (value := getattr(arguments, field)) is not None}
    for attempt in range(1, arguments.tries + 1):
        try:
            png, details = generate(arguments.url, arguments.key, body, show)
            break
        except ApiError as error:
            if error.retry_after is None or attempt == arguments.tries:
                sys.exit(f"\n{error}")
            print(f"\n{error}", file=sys.stderr)
            time.sleep(error.retry_after)
        except (OSError, http.client.HTTPException) as error:
            sys.exit(f"cannot reach {arguments.url}: {error}")
    print(file=sys.stderr)
    with open(arguments.output, "wb") as file:
        file.write(png)
    seconds = details["elapsed_ms"] / 1000
    print(f"{arguments.output}: seed {details['seed']}, {seconds:.2f} s, by {details['miner'] or 'this node'}")


if __name__ == "__main__":
    main()
