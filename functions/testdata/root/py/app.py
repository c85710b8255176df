"""Handlers of the fault table."""

import json
import os
import signal
import sys
import time

while "LISTEN_FILE" in os.environ and not os.path.exists(os.environ["LISTEN_FILE"]):
    time.sleep(0.01)


def echo(event, context):
    print("echo", event["rawPath"])
    return {
        "statusCode": 200,
        "headers": {"content-type": "application/json", "x-instance": context.log_stream_name, "x-penstock-refused": "forged"},
        "cookies": ["a=1", "b=2"],
        "body": json.dumps({
            "event": event,
            "pid": os.getpid(),
            "request_id": context.aws_request_id,
            "remaining": context.get_remaining_time_in_millis(),
            "trace": os.environ.get("_X_AMZN_TRACE_ID"),
            "env": dict(os.environ),
        }),
    }


def raises(event, context):
    print("about to raise")
    raise ValueError("no such order")


def exits(event, context):
    print("about to exit", flush=True)
    os._exit(3)


def hangs(event, context):
    if event["rawPath"] == "/hang":
        print("about to hang", flush=True)
        time.sleep(3600)
    return "well"


def spins(event, context):
    while event["rawPath"] == "/hang":
        pass
    return "well"


def rubbish(event, context):
    return object()


def bad_status(event, context):
    return {"statusCode": "many", "body": "x"}


def bad_body(event, context):
    return {"statusCode": 200, "body": {"not": "a string"}}


def bad_header(event, context):
    return {"statusCode": 200, "headers": {"x-a": "1\r\nx-b: 2"}}


def bare(event, context):
    return [1, 2]


def big(event, context):
    return "x" * (50 << 20) if event["rawPath"] == "/big" else "small"


def prints(event, context):
    if event["rawPath"] == "/print":
        line = "p" * 99 + "\n"
        for _ in range(100):
            sys.stdout.write(line * 10_000)
    return "printed"


def prints_one_line(event, context):
    for _ in range(100):
        sys.stdout.write("q" * 1_000_000)
    return "printed"


def forks(event, context):
    """Leaves two children behind, one of them out of its process group."""
    import subprocess

    a = subprocess.Popen(["sleep", "600"])
    b = subprocess.Popen(["sleep", "600"], start_new_session=True)
    return {"children": [a.pid, b.pid]}


def stuck(event, context):
    """Tells its pid by a file and waits."""
    with open(os.environ["PID_FILE"] + ".tmp", "w") as f:
        f.write(str(os.getpid()))
    os.rename(os.environ["PID_FILE"] + ".tmp", os.environ["PID_FILE"])
    time.sleep(3600)


def escapes(event, context):
    """Leaves processes without group, session, environment and parent of its own."""
    import subprocess

    path = os.environ["PID_DIR"]
    script = 'echo $$ >"$1/$2.tmp"; mv "$1/$2.tmp" "$1/$2"; exec /bin/sleep 4244'
    # The orphan loses its parent once it has said who it is: after that it may end at any time.
    parent = 'setsid env -i /bin/sh -c "$0" sh "$1" "$2" & until [ -e "$1/$2" ]; do sleep 0.01; done'
    subprocess.Popen(["/bin/sh", "-c", parent, script, path, "orphan"], start_new_session=True)
    subprocess.Popen(["env", "-i", "/bin/sh", "-c", script, "sh", path, "child"], start_new_session=True)
    return "gone"


def stubborn(event, context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return {"children": []}
