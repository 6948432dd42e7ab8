"""Build and run the image with the commands at the top of its Dockerfile, next to a Postgres (``make image``).

Podman takes the place of Docker, and keeps everything in a temporary folder. The base image ``python:3.13-slim`` is
replaced by one with Debian's Python, so no registry of images is needed. The settings get free ports, because the
container uses the network of this machine. The run ends when a client has received a row and the health check of the
image has passed. Exits with 1 if a step fails. Needs root on Debian 13, its packages mmdebstrap, netavark, podman and
runc, and what the tests need.
"""

import itertools
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.application import application
from tests.newcomer import Newcomer, free_port, until
from tests.postgres import running_postgres

NEEDED: Final = ("mmdebstrap", "podman", "runc")
BASE: Final = (
    "mmdebstrap --quiet --variant=essential --include=python3,python3-venv,passwd"
    " --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*'"
    """ --customize-hook='chroot "$1" python3 -m venv /usr/local' trixie - | docker import - python:3.13-slim"""
)
"""As in the real one, ``python`` and ``pip`` are in /usr/local. Documents and translations would be a third of it."""
FROM_HERE: Final = ("/etc/ssl/certs", "/etc/pip.conf")
"""Mounted, so that pip has the settings and certificates of this machine."""
LISTENING: Final = re.compile('"event": "listening"')


@contextmanager
def engine(newcomer: Newcomer) -> Iterator[None]:
    """Make podman the newcomer's ``docker``. Its containers are removed at the end."""
    folder = newcomer.place
    # Podman would raise these limits, which root may not do in a virtual machine or container without that capability.
    kinds = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    limits = [f"{name}={hard}:{hard}" for name, kind in kinds.items() for _, hard in [resource.getrlimit(kind)]]
    volumes = [f"{path}:{path}:ro" for path in FROM_HERE if Path(path).exists()]
    (folder / "containers.conf").write_text(
        f'[containers]\nnetns = "host"\ndefault_ulimits = {json.dumps(limits)}\nvolumes = {json.dumps(volumes)}\n'
        f'[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\nlock_type = "file"\n'
        f'tmp_dir = "{folder}/engine"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
    )
    (folder / "bin").mkdir()
    (folder / "bin" / "docker").symlink_to(shutil.which("podman") or "")
    newcomer.environ |= {
        "PATH": f"{folder}/bin{os.pathsep}{newcomer.environ['PATH']}",
        "CONTAINERS_CONF": f"{folder}/containers.conf",
        "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
        "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        "BUILDAH_FORMAT": "docker",  # the other format has no health check
        "BUILDAH_LAYERS": "false",
    }
    try:
        yield
    finally:
        newcomer.run("docker rm --all --force")


def serve(newcomer: Newcomer, command: str, url: str) -> None:
    """Run the image with free ports on a new database, until a client has received a row."""
    port, settings = free_port(), newcomer.clone / "config" / "prod.toml"
    text = settings.read_text().replace("PORT:-8080", f"PORT:-{port}")
    settings.write_text(text.replace("[admin]\n", f"[admin]\nport = {free_port()}\n"))
    newcomer.environ["DATABASE_URL"] = url
    newcomer.run(f"{command} migrate --with-tables --config /etc/airy-trio/airy-trio.toml")
    with newcomer.running(f"exec {command}") as lines:
        until(lines, LISTENING)
        with application(url) as made:
            made.tag("t1", "flag")
        newcomer.run(f"{sys.executable} -m airy_trio tail --url ws://127.0.0.1:{port} --all --events 1 | grep flag")
        newcomer.run("docker healthcheck run $(docker ps --quiet --latest)")
        newcomer.run("test $(docker exec --latest id -u) = 10001")


def main() -> None:
    """Build and run, and print how long each part took."""
    if os.geteuid() != 0:
        sys.exit("image: needs root")
    if missing := [program for program in NEEDED if shutil.which(program) is None]:
        sys.exit(f"image: not in PATH: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="airy-trio-image-") as folder, running_postgres() as postgres:
        newcomer = Newcomer(Path(folder))
        text = (newcomer.clone / "deploy" / "Dockerfile").read_text()
        build, run = re.findall(r"^#   (docker .+)$", text, re.MULTILINE)
        with engine(newcomer):
            times = [time.monotonic()]
            newcomer.run(BASE)
            times.append(time.monotonic())
            newcomer.run(build)
            times.append(time.monotonic())
            serve(newcomer, run, postgres.url(postgres.create_database()))
            times.append(time.monotonic())
    base_s, build_s, run_s = (after - before for before, after in itertools.pairwise(times))
    sys.stdout.write(f"image: base {base_s:.0f} s, build {build_s:.0f} s, a row at a client {run_s:.0f} s\n")


if __name__ == "__main__":
    main()
