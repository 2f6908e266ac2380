"""The two images without a container engine: the root file system of each Dockerfile's last stage, run in
namespaces of its own, read-only, as the user that the Dockerfile names. They share the folder of their sockets.

    containers.py OUT GATEWAY_OUT WORKER_OUT PROGRAM

OUT is a folder to work in; GATEWAY_OUT and WORKER_OUT hold what `/out` is in the Dockerfiles' first stages. What the
images take from Debian is taken from this system: the libraries that the programs load, and nothing else. PROGRAM is
the component `choice`.

Exits with 77 where the system does not let its user make namespaces.
"""

import ctypes
import fcntl
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIP = 77
# Far longer than anything here takes, even on a busy machine.
PATIENCE = 120

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def call(name, *args):
    args = [arg.encode() if isinstance(arg, str) else arg for arg in args]
    if getattr(LIBC, name)(*args) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}{tuple(args)}: {os.strerror(errno)}")


class Image:
    """What the last stage of a Dockerfile says, and a root file system made of it."""

    def __init__(self, dockerfile, out, root):
        text = dockerfile.read_text().replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
        last = max(i for i, line in enumerate(lines) if line.startswith("FROM "))
        self.env, self.copies, said = {}, [], {}
        for line in lines[last + 1 :]:
            word, rest = line.split(maxsplit=1)
            if word == "COPY":
                flags = [part for part in rest.split() if part.startswith("--")]
                assert "--from=build" in flags, line
                self.copies.append([part for part in rest.split() if not part.startswith("--")])
            elif word == "ENV":
                self.env |= dict(part.split("=", 1) for part in shlex.split(rest))
            else:
                said[word] = rest
        self.user = int(said["USER"].split(":")[0])
        self.entrypoint, self.command = json.loads(said["ENTRYPOINT"]), json.loads(said["CMD"])
        health = said.get("HEALTHCHECK", "CMD []").split("CMD ", 1)[1]
        self.health = json.loads(health)
        self.root = root
        self.assemble(out)

    def assemble(self, out):
        shutil.rmtree(self.root, ignore_errors=True)
        for source, target in self.copies:
            source = out / Path(source).relative_to("/out")
            target = self.root / target.strip("/")
            shutil.copytree(source, target, copy_function=os.link, dirs_exist_ok=True)
        program = self.root / self.entrypoint[0].strip("/")
        listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        for word in listed.split():
            library = Path(word)
            if library.is_absolute() and not library.is_relative_to(self.root):
                target = self.root / word.strip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, target)
        for folder in ["proc", "dev", "tmp", "sys"]:
            (self.root / folder).mkdir()
        (self.root / "dev/null").touch()

    def size(self):
        files = [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]
        return sum(path.stat().st_size for path in files) / 1e6


class Container:
    """A process in namespaces of its own, and `beside`, which runs in its network alone. `volumes` are folders, by
    where they are mounted."""

    def __init__(self, image, env, volumes, command=None, beside=None):
        self.image, self.env, self.volumes = image, image.env | env, volumes
        self.command = image.entrypoint + (command or image.command)
        read, write = os.pipe()
        self.agent = os.fork()
        if self.agent == 0:
            code = 1
            try:
                os.close(read)
                code = self.enter(write, beside)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)
        with os.fdopen(read) as pipe:
            line = pipe.readline()
        assert line, "the container did not start"
        self.pid = int(line)

    def enter(self, write, beside):
        uid, gid = os.getuid(), os.getgid()
        call("unshare", CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{self.image.user} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{self.image.user} {gid} 1")
        call("unshare", CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
        if beside:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                up = struct.pack("16sh22x", b"lo", IFF_UP)
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, up)
        child = os.fork()
        if child == 0:
            try:
                os.close(write)
                self.become()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.write(write, f"{child}\n".encode())
        os.close(write)
        try:
            if beside:
                beside(child)
        finally:
            # Of a client that failed, or of a worker whose end is somebody else's to bring about.
            if beside:
                stop(child, signal.SIGKILL)
        if not beside:
            os.waitpid(child, 0)
        return 0

    def become(self):
        """Goes into the root file system, and executes the image's program."""
        call("unshare", CLONE_NEWNS)
        root = str(self.image.root)
        call("mount", "none", "/", None, MS_REC | MS_PRIVATE, None)
        call("mount", root, root, None, MS_BIND | MS_REC, None)
        call("mount", "/dev/null", f"{root}/dev/null", None, MS_BIND, None)
        for place, folder in self.volumes.items():
            call("mount", str(folder), f"{root}{place}", None, MS_BIND, None)
        call("mount", "proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
        os.chdir(root)
        if LIBC.syscall(PIVOT_ROOT, b".", b".") != 0:
            raise OSError(ctypes.get_errno(), "pivot_root")
        call("umount2", ".", MNT_DETACH)
        os.chdir("/")
        # What this system has of such flags is kept; a namespace may not take them away.
        kept = os.statvfs("/").f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        call("mount", "none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept, None)
        for place in ["/new", "/opt/realm/new", "/tmp/new"]:
            try:
                open(place, "w")
            except OSError:
                continue
            raise AssertionError(f"{place} can be written")
        os.execve(self.command[0], self.command, self.env)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.agent, 0)

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.agent, 0)[1])


def stop(pid, with_signal):
    """Ends a child, if it is still there; how it ended."""
    try:
        os.kill(pid, with_signal)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except (ProcessLookupError, ChildProcessError):
        return None


def ask(port, path, body=None):
    """Sends JSON, or a component as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        if isinstance(body, bytes):
            connection.request("POST", path, body, {"content-type": "application/wasm"})
        elif body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_until(what, condition):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < PATIENCE, f"gave up waiting until {what}"
        time.sleep(0.05)


def is_ready():
    try:
        return ask(9090, "/ready")[0] == 200
    except OSError:
        return False


def chat(**more):
    body = {
        "model": "realm-tiny",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 32,
        "seed": 7,
    } | more
    status, answer = ask(8080, "/v1/chat/completions", body)
    assert status == 200, answer
    text = json.loads(answer)["choices"][0]["message"]["content"]
    assert text, answer
    return text


def interfaces(pid):
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    return [line.split(":")[0].strip() for line in lines]


def status_of(pid, key):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1].split() for line in lines if line.startswith(f"{key}:"))


def namespaces(pid):
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in ["mnt", "net", "pid", "user"]}


def may_make_namespaces():
    child = os.fork()
    if child == 0:
        os._exit(0 if LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0


def main(out, gateway_out, worker_out, program):
    if not may_make_namespaces():
        sys.exit(SKIP)
    sockets, programs = out / "sockets", out / "programs"
    for folder in [sockets, programs]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    shared = {"/run/realm": sockets}
    gateway = Image(ROOT / "docker/gateway.Dockerfile", gateway_out, out / "gateway")
    worker = Image(ROOT / "docker/worker.Dockerfile", worker_out, out / "worker")
    print(f"without what is Debian's besides: gateway {gateway.size():.0f} MB, worker {worker.size():.0f} MB")
    env = {
        "REALM_ATTACH": "realm-tiny=/run/realm/model.sock",
        "REALM_ALLOW_UNAUTHENTICATED": "true",
        "REALM_PROGRAMS_DIR": "/var/lib/realm/programs",
        "REALM_COMPILER": "/run/realm/compiler.sock",
    }
    workers = [Container(worker, {}, shared)]
    compiler = Container(worker, {}, shared, ["compile", "--socket=/run/realm/compiler.sock"])
    control, told = os.pipe()
    heard, tell = os.pipe()

    def beside(pid):
        """What a client does in the gateway's network, and what a look from outside shows."""
        os.close(control)
        os.close(tell)
        wait_until("the gateway is ready", is_ready)
        before = chat()
        wait_until("the compiler listens", (sockets / "compiler.sock").exists)
        status, stored = ask(8080, "/v1/programs?name=choice", program.read_bytes())
        assert status == 200, stored
        steered = {"processor": {"name": "choice", "args": {"choices": ["quite so"]}}}
        assert chat(**steered) == "quite so"
        own = gateway.root / gateway.health[0].strip("/")
        subprocess.run([own, *gateway.health[1:]], check=True, stdout=subprocess.DEVNULL)
        assert not list((gateway.root).rglob("*torch*"))
        os.write(told, b"x")
        # The worker is killed, and another one started, by whoever runs containers.
        assert os.read(heard, 1) == b"x"
        wait_until("the gateway is ready again", is_ready)
        assert chat() == before
        assert chat(**steered) == "quite so"
        assert stop(pid, signal.SIGTERM) == 0, "the gateway did not end well"

    serving = Container(gateway, env, shared | {"/var/lib/realm": programs}, beside=beside)
    try:
        os.close(told)
        assert os.read(control, 1) == b"x", "the client failed"
        pids = [serving.pid, workers[0].pid, compiler.pid]
        each = [namespaces(pid) for pid in [os.getpid(), *pids]]
        for name in each[0]:
            assert len({one[name] for one in each}) == 4, name
        for pid in pids[1:]:
            assert interfaces(pid) == ["lo"]
        for pid in pids:
            assert status_of(pid, "CapEff") == ["0000000000000000"]
            assert status_of(pid, "NSpid")[1:] == ["1"]
        assert status_of(workers[0].pid, "Seccomp") == ["2"]
        # As the image's own check does with `grep`, which is Debian's.
        assert worker.health[0] == "grep"
        pattern, file = worker.health[-2:]
        assert pattern in Path(f"/proc/{workers[0].pid}/{file.removeprefix('/proc/')}").read_text()
        workers[0].kill()
        workers[0] = Container(worker, {}, shared)
        os.write(tell, b"x")
        assert serving.wait() == 0, "the client failed"
    finally:
        os.close(tell)
        workers[0].kill()
        compiler.kill()
    print("three containers answered, and again after the worker's was killed")


if __name__ == "__main__":
    main(*(Path(arg).resolve() for arg in sys.argv[1:]))
