"""The Containerfile: hadolint, the same Rust as everywhere, a build context that holds what cargo needs, a working probe."""

import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
import tomllib
from pathlib import Path

FOLDER = "infra/container"


def check(root: Path) -> list[str]:
    file = f"{FOLDER}/Containerfile"
    ran = subprocess.run(["hadolint", "--no-color", file], cwd=root, capture_output=True, text=True, check=False)
    found = (ran.stdout + ran.stderr).splitlines()
    text = (root / file).read_text()
    wanted = tomllib.loads((root / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
    if f"ARG RUST_VERSION={wanted}\n" not in text:
        found.append(f"{file}: RUST_VERSION is not {wanted}, which rust-toolchain.toml wants")
    version = tomllib.loads((root / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    if f"ARG VERSION={version}\n" not in text:
        found.append(f"{file}: VERSION is not {version}, which Cargo.toml has")
    user = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    if not user or not re.fullmatch(r"[1-9]\d+:\d+", user[-1]):
        found.append(f"{file}: the last USER is no number above 0")
    health, exposed = health_port(root), re.findall(r"^EXPOSE (\d+)", text, re.MULTILINE)
    if exposed != [str(health)]:
        found.append(f"{file}: EXPOSE {exposed} is not the port of TIDEGATE_HEALTH, {health}")
    return found + check_context(root)


def health_port(root: Path) -> int:
    """The port on which a role answers in the image."""
    return int(re.search(r"TIDEGATE_HEALTH=0\.0\.0\.0:(\d+)", (root / FOLDER / "Containerfile").read_text())[1])


def check_context(root: Path) -> list[str]:
    """Whether what `Containerfile.dockerignore` lets through holds every file that the manifests name."""
    lines = (root / FOLDER / "Containerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    with tempfile.TemporaryDirectory() as folder:
        for path in kept:
            source, target = root / path, Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("target", ".tidegate"), symlinks=True)
            elif source.exists():
                shutil.copy(source, target)
            else:
                return [f"{FOLDER}/Containerfile.dockerignore: there is no `{path}`"]
        for copied in re.findall(r"^COPY (?!--from)(?:--\S+ )*(\S+)", (root / FOLDER / "Containerfile").read_text(), re.M):
            if not (Path(folder) / copied).exists():
                return [f"{FOLDER}/Containerfile: `{copied}` is not in the build context"]
        command = ["cargo", "metadata", "--no-deps", "--format-version=1", "--offline"]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ran.returncode:
            return [f"{FOLDER}: the build context is not a workspace: {ran.stderr.strip()}"]
        targets = [target["src_path"] for package in json.loads(ran.stdout)["packages"] for target in package["targets"]]
        missing = [path for path in targets if not Path(path).exists()]
        return [f"{FOLDER}: the build context lacks {Path(path).relative_to(folder)}" for path in missing]


def try_health_check(root: Path) -> list[str]:
    """Runs the image's health check against a server that is well, one that is not, and none."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 503)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    def ends_with(port: int, *arguments: str) -> int:
        command = ["bash", str(root / FOLDER / "healthy.sh"), *arguments]
        environment = {"TIDEGATE_HEALTH": f"0.0.0.0:{port}", "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, timeout=30, check=False).returncode

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.server_address[1]
    got = [ends_with(port), ends_with(port, "/readyz")]
    server.shutdown()
    thread.join()
    server.server_close()
    got.append(ends_with(port))
    return [] if got == [0, 1, 1] else [f"{FOLDER}/healthy.sh: ended with {got}, expected [0, 1, 1]"]
