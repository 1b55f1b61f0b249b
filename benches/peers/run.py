#!/usr/bin/env python3
"""Argus and its peers in one run, on this machine: one table, with ratios.

Installs each peer from PyPI into a virtual environment of its own under TARGET/peers (once), then runs
them one after another, Argus first and last, so that a machine that gets busier meanwhile shows. Argus's
rows are those of `cargo bench --bench query`; build it before (`make bench-peers` does).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ENVIRONMENTS = {
    "bittensor10": ["bittensor==10.5.0"],
    "bittensor11": ["bittensor==11.3.0", "starlette", "uvicorn", "aiohttp"],
    # It imports pkg_resources, which newer setuptools no longer have.
    "hivemind": ["hivemind==1.1.12", "uvloop", "setuptools<81"],
}
SCRIPTS = [
    ("bittensor10", "axon.py"),
    ("bittensor11", "btauth.py"),
    ("hivemind", "hivemind_p2p.py"),
    ("hivemind", "hivemind_dht.py"),
]


def environment(target, name):
    """The Python of the peer's virtual environment; installs what is missing."""
    folder = target / "peers" / name
    python = folder / "bin" / "python"
    done = folder / "installed"
    wanted = "\n".join(ENVIRONMENTS[name])
    if not done.exists() or done.read_text() != wanted:
        print(f"installing {', '.join(ENVIRONMENTS[name])}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]]
        subprocess.run(install, check=True)
        done.write_text(wanted)
    return python


def rows_of(command, cwd=HERE, timeout=600):
    """The JSON lines a command prints; none, with a word why, when it fails."""
    try:
        ran = subprocess.run(
            command, cwd=cwd, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except subprocess.TimeoutExpired:
        print(f"{command[-1]}: not done within {timeout} s", file=sys.stderr)
        return []
    if ran.returncode != 0:
        print(f"{' '.join(map(str, command))} failed:\n{ran.stderr[-2000:]}", file=sys.stderr)
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    return [row for each in found for row in each.get("rows", [each])]


def newest(target, name):
    """The bench binary that cargo built last."""
    built = [
        path
        for profile in ("debug", "release")
        for path in (target / profile / "deps").glob(f"{name}-*")
        if path.suffix == "" and os.access(path, os.X_OK)
    ]
    if not built:
        sys.exit(f"no bench {name!r} under {target}: run `make bench-peers`, or `cargo build --benches`")
    return max(built, key=lambda path: path.stat().st_mtime)


def table(rows):
    """Every row, and how Argus over TCP compares: above 1 Argus is ahead."""
    own = {row["bytes"]: row for row in rows if row["stack"] == "argus tcp"}
    head = f"{'stack':<22}{'bytes':>9}{'p50 ms':>10}{'per s':>10}{'32: per s':>11}"
    lines = [head + f"{'Argus: p50':>13}{'per s':>8}{'32':>8}"]
    for row in rows:
        ours = own.get(row["bytes"])
        line = (
            f"{row['stack']:<22}{row['bytes']:>9}{row['seq_p50_ms']:>10.3f}"
            f"{row['seq_rps']:>10.1f}{row['c32_rps']:>11.1f}"
        )
        if ours and ours is not row:
            line += (
                f"{row['seq_p50_ms'] / ours['seq_p50_ms']:>12.2f}×"
                f"{ours['seq_rps'] / row['seq_rps']:>7.2f}×{ours['c32_rps'] / row['c32_rps']:>7.2f}×"
            )
        lines.append(line)
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", default="target", type=pathlib.Path, help="cargo's target folder")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    target = options.target.resolve()
    quick = ["--quick"] if options.quick else []
    pythons = {name: environment(target, name) for name in ENVIRONMENTS}

    argus = [newest(target, "query"), "--json", *quick]
    rows = rows_of(argus)
    for name, script in SCRIPTS:
        rows += rows_of([pythons[name], script, *quick])
    again = [dict(row, stack=row["stack"] + " (again)") for row in rows_of(argus)]
    rows += [row for row in again if row["stack"].startswith("argus tcp")]
    if options.json:
        print(json.dumps({"load": os.getloadavg()[0], "cores": os.cpu_count(), "rows": rows}))
        return
    print(f"echo on loopback, payload both ways; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(table([row for row in rows if "seq_p50_ms" in row]))
    for row in rows:
        if "lookup_nodes" in row:
            print(
                f"{row['stack']}: lookup over {row['lookup_nodes']} nodes p50 {row['p50_ms']:.1f} ms, "
                f"p95 {row['p95_ms']:.1f} ms"
            )


if __name__ == "__main__":
    main()
