"""Servers and clients as Debian has them, over TSI and inside the guest.

The servers on the host are the same packages, unpacked, in a chroot: this needs root.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import socket
import subprocess

import pytest

from fastpath.image.images import cache_directory
from tests.support.limits import wait_until
from tests.vm.world import HOST4, HTTP, open_world

pytestmark = [pytest.mark.vm, pytest.mark.nightly]

FILES, REDIS = 8090, 6379
PG = "/usr/lib/postgresql/15/bin"
USERS = "root:x:0:0::/:/bin/sh\npostgres:x:101:101::/tmp:/bin/sh\n"
REDIS_SERVER = ["redis-server", "--save", "", "--protected-mode", "no"]
INITDB = f"{PG}/initdb -N -A trust -D /tmp/data > /tmp/initdb 2>&1"
NGINX = f"""
events {{}}
http {{
  access_log off;
  server {{
    listen 127.0.0.1:8000;
    location / {{ return 200 "local\\n"; }}
    location /host {{ proxy_pass http://{HOST4}:{HTTP}; }}
  }}
}}
"""
ANT = f"""
<project default="get"><target name="get">
  <get src="http://{HOST4}:{HTTP}/" dest="/tmp/by-java" quiet="true"/>
  <fail><condition>
    <not><socket server="{HOST4}" port="{HTTP}"/></not>
  </condition></fail>
  <fail><condition><socket server="{HOST4}" port="8081"/></condition></fail>
</target></project>
"""
NODE = f"""
const http = require("http");
const read = (url, then) => http.get(url, (r) => r.on("data", (d) => then(String(d))));
const server = http.createServer((q, r) => r.end("local\\n"));
server.listen(0, "127.0.0.1", () => {{
  const port = server.address().port;
  read("http://{HOST4}:{HTTP}/", (host) =>
    read(`http://127.0.0.1:${{port}}/`, (local) => {{
      process.stdout.write(host + local);
      require("net").connect(8081, "{HOST4}").on("error", (e) => {{
        console.log(e.code);
        process.exit(0);
      }});
    }}));
}});
"""


@pytest.fixture(scope="module")
def tree(services_image, tmp_path_factory):
    """The image's packages, unpacked."""
    root = tmp_path_factory.mktemp("tree")
    facts = json.loads((services_image.initramfs.parent / "image.json").read_text())
    for name in facts["packages"]:
        if not name.startswith(("linux-", "openjdk-", "libnode", "nodejs", "git_")):
            deb = cache_directory() / "debs" / name
            subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    (root / "bin/sh").symlink_to("busybox")
    (root / "etc/passwd").write_text(USERS)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o777)
    (root / "dev/shm").mkdir(parents=True)
    (root / "dev/null").touch()
    (root / "dev/null").chmod(0o666)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the host serves by HTTP: a file, a git repository, a Debian repository."""
    root = tmp_path_factory.mktemp("files")
    (root / "large").write_bytes(os.urandom(3 << 20))
    work = root / "work"
    git = ["git", "-C", work, "-c", "user.name=n", "-c", "user.email=n@example.com"]
    subprocess.run(["git", "init", "-q", work], check=True)
    (work / "file").write_text("from git\n")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "A file"], check=True)
    subprocess.run(
        ["git", "clone", "-q", "--bare", work, root / "repo.git"], check=True
    )
    subprocess.run(["git", "-C", root / "repo.git", "update-server-info"], check=True)
    package(root)
    return root


def package(root):
    """A flat repository with one package."""
    control = "Package: one\nVersion: 1\nArchitecture: all\nMaintainer: m\n"
    control += "Description: d\n"
    (root / "one/DEBIAN").mkdir(parents=True)
    (root / "one/DEBIAN/control").write_text(control)
    deb = root / "apt/one.deb"
    deb.parent.mkdir()
    command = ["dpkg-deb", "--root-owner-group", "-b", root / "one", deb]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    content = deb.read_bytes()
    control += f"Filename: ./one.deb\nSize: {len(content)}\n"
    control += f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    (deb.parent / "Packages").write_text(control)


def answers(port):
    """Whether somebody listens on the host's side."""
    with socket.socket() as sock:
        return sock.connect_ex((HOST4, port)) == 0


@pytest.fixture(scope="module")
def servers(tree, folder, namespace):
    """PostgreSQL, Redis and files at the host's address."""
    if os.geteuid() != 0:
        pytest.skip("a chroot needs root")
    as_postgres = ["chroot", "--userspec=101:101", str(tree), "sh", "-c"]
    sockets = f"-k /tmp -h {HOST4} -c jit=off"
    subprocess.run([*as_postgres, INITDB], check=True)
    trust = f"host all all {HOST4}/32 trust\n"
    with (tree / "tmp/data/pg_hba.conf").open("a") as file:
        file.write(trust)
    commands = [
        [*as_postgres, f"exec {PG}/postgres -D /tmp/data {sockets}"],
        ["chroot", str(tree), *REDIS_SERVER, "--bind", HOST4],
        ["python3", "-m", "http.server", "-b", HOST4, "-d", str(folder), str(FILES)],
    ]
    running = [
        subprocess.Popen(
            namespace.command(command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    ready = f"exec {PG}/pg_isready -q -h {HOST4}"
    command = namespace.command([*as_postgres, ready])
    wait_until(lambda: subprocess.run(command, check=False).returncode == 0)
    for port in (REDIS, FILES):
        wait_until(functools.partial(namespace.run, answers, port))
    yield
    for process in running:
        process.terminate()
    for process in running:
        process.wait()


@pytest.fixture(scope="module")
def world(services_image, accelerator, servers, namespace, tmp_path_factory):
    out = tmp_path_factory.mktemp("guest")
    files = {"nginx.conf": NGINX, "build.xml": ANT, "client.js": NODE}
    for name, text in files.items():
        (out / name).write_text(text)
    there = {f"/root/{name}": out / name for name in files}
    with open_world(
        services_image, accelerator, there, namespace, memory_mib=3072
    ) as opened:
        yield opened


def test_curl_and_wget(world, folder):
    digest = hashlib.sha256((folder / "large").read_bytes()).hexdigest()
    url = f"http://{HOST4}:{FILES}/large"
    for fetch in (f"curl -sS {url}", f"/usr/bin/wget -q -O - {url}"):
        assert world.sh(f"{fetch} | sha256sum") == (0, f"{digest}  -\n")


def test_git_clones(world):
    clone = f"git clone -q http://{HOST4}:{FILES}/repo.git /tmp/repo"
    assert world.sh(f"{clone} && cat /tmp/repo/file") == (0, "from git\n")


def test_apt_updates_and_downloads(world):
    source = f"deb [trusted=yes allow-insecure=yes] http://{HOST4}:{FILES}/apt ./"
    script = f"""
    mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/lib/dpkg
    touch /var/lib/dpkg/status
    echo '{source}' > /etc/apt/sources.list
    cd /tmp && apt-get -q update && apt-get -q download one && ls one_1_all.deb
    """
    status, said = world.sh(script)
    assert status == 0, said
    assert said.endswith("one_1_all.deb\n")


def test_node(world):
    said = world.run("node", "/root/client.js")
    assert said == (0, "hello\nlocal\nECONNREFUSED\n")


def test_java(world):
    script = (
        "cd /root && ant -q > /tmp/ant.log 2>&1 || cat /tmp/ant.log; cat /tmp/by-java"
    )
    assert world.sh(script) == (0, "hello\n")


def test_nginx_serves_and_forwards(world):
    script = """
    mkdir -p /var/log/nginx /var/lib/nginx
    nginx -c /root/nginx.conf -g 'pid /tmp/nginx.pid; error_log stderr;' || exit 1
    curl -sS http://127.0.0.1:8000/ http://127.0.0.1:8000/host
    nginx -c /root/nginx.conf -g 'pid /tmp/nginx.pid;' -s stop 2> /dev/null
    """
    assert world.sh(script) == (0, "local\nhello\n")


def test_redis_as_client(world):
    script = f"redis-cli -h {HOST4} set a 42; redis-cli -h {HOST4} get a"
    assert world.sh(script) == (0, "OK\n42\n")
    status, said = world.sh(f"redis-benchmark -h {HOST4} -n 2000 -c 20 -q -t set,get")
    assert status == 0, said


def test_redis_as_server(world):
    script = """
    redis-server --bind 127.0.0.1 --save '' --daemonize yes > /tmp/redis
    until redis-cli ping > /dev/null 2>&1; do sleep 0.2; done
    redis-cli set a 43; redis-cli get a; redis-cli shutdown nosave
    """
    assert world.sh(script) == (0, "OK\n43\n")


SELECT = "-U postgres -Atc 'select 6 * 7'"


def test_postgresql_as_client(world):
    script = f"{PG}/psql -h {HOST4} {SELECT}; {PG}/psql -h {HOST4} -p 8081 {SELECT}"
    status, said = world.sh(script)
    assert said.startswith("42\n"), said
    assert "Connection refused" in said
    assert status == 2


def test_postgresql_as_server(world):
    control = f"{PG}/pg_ctl -D /tmp/data -w -t 120 -l /tmp/log"
    start = f'{control} -o "-k /tmp -h 127.0.0.1 -c jit=off" start > /tmp/ctl'
    script = f"""
    chmod 1777 /tmp
    su postgres -c '{INITDB} && {start}' || {{ cat /tmp/initdb /tmp/log; exit 1; }}
    {PG}/psql -h 127.0.0.1 {SELECT}
    su postgres -c '{control} stop > /dev/null'
    """
    assert world.sh(script) == (0, "42\n")


def test_the_packages_are_the_images(tree):
    assert shutil.which("redis-server", path=f"{tree}/usr/bin")
