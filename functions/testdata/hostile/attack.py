"""Code of a build, or of a package that is installed, that tries what it must not be able
to do. It gets a list of [what, argument] and writes what came of each beside itself."""
import errno
import glob
import json
import os
import signal
import socket
import subprocess
import sys


def read(pattern):
    found = glob.glob(pattern)
    if not found:
        raise FileNotFoundError(errno.ENOENT, pattern)
    with open(found[0], "rb") as f:
        return f.read(40).decode(errors="replace")


def connect(address):
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5):
        return "connected"


def forks(most):
    children = []
    try:
        while len(children) < int(most):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    except OSError as e:
        if len(children) < 100:
            raise
        raise OSError(e.errno, "after many")
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return "%d processes" % len(children)


def daemon(marker):
    """Leaves a process in a session of its own, without the environment that it had."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(3):
                os.close(fd)
            os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)", marker], {})
        os._exit(0)
    return "left"


def write(path):
    with open(path, "w") as f:
        f.write("x")
    return "written"


ACTIONS = {
    "read": read, "connect": connect, "forks": forks, "daemon": daemon, "write": write,
    "list": lambda p: " ".join(sorted(os.listdir(p))),
    "kill": lambda pid: os.kill(int(pid), 0) or "killed",
    "hardlink": lambda p: os.link(p, "hard") or "linked",
    "chown": lambda p: os.chown(p, os.getuid() + 1, -1) or "owned",
    "mknod": lambda p: os.mknod(p, 0o20666, os.makedev(1, 1)) or "made",
    "mount": lambda p: subprocess.run(["mount", "-t", "tmpfs", "none", p], capture_output=True, check=True) and "mounted",
    "environment": lambda _: " ".join(sorted(os.environ)),
    "status": lambda _: open("/proc/self/status").read(),
    "processes": lambda _: " ".join(p for p in os.listdir("/proc") if p.isdigit()),
}


def run(attacks, to):
    results = []
    for what, arg in attacks:
        try:
            results.append(["done", ACTIONS[what](arg)])
        except OSError as e:
            results.append(["refused", errno.errorcode.get(e.errno, str(e))])
        except Exception as e:
            results.append(["refused", str(e)])
    with open(to, "w") as f:
        json.dump(results, f)


if __name__ == "__main__":
    with open(sys.argv[1]) as f:
        run(json.load(f), sys.argv[2])
