"""Functions Framework functions of the fault table."""

import os
import subprocess
import sys
import time

import flask
import functions_framework

while "LISTEN_FILE" in os.environ and not os.path.exists(os.environ["LISTEN_FILE"]):
    time.sleep(0.01)


@functions_framework.http
def echo(request):
    print("echo", request.path)
    return {
        "method": request.method, "path": request.path, "query": request.query_string.decode(),
        "body": request.get_data(as_text=True), "trace": request.headers.get("traceparent"),
        "id": request.headers.get("x-request-id"), "target": os.environ["FUNCTION_TARGET"], "pid": os.getpid(),
    }, 201, {"x-kind": "http", "x-penstock-refused": "forged"}


@functions_framework.cloud_event
def event(cloud_event):
    print("event", cloud_event["type"], cloud_event["source"], cloud_event.data)
    if cloud_event.data == {"fail": True}:
        raise ValueError("no such event")


def plain(request):
    return "plain " + request.path


def raises(request):
    raise ValueError("no such order")


def exits(request):
    if request.path == "/exit":
        print("about to exit", flush=True)
        os._exit(3)
    return "well"


def hangs(request):
    if request.path == "/hang":
        print("about to hang", flush=True)
        time.sleep(3600)
    return "well"


def rubbish(request):
    return object()


def big(request):
    return "x" * (50 << 20)


def prints(request):
    line = "p" * 99 + "\n"
    for _ in range(100):
        sys.stdout.write(line * 10_000)
    return "printed"


def breaks(request):
    """Raises in the middle of a streamed answer."""

    def pieces():
        yield "piece 0\n"
        raise ValueError("lost the thread")

    return pieces()


def ticks(request):
    """Streams events for three seconds."""

    def events():
        for _ in range(30):
            yield "data: tick\n\n"
            time.sleep(0.1)

    return flask.Response(events(), mimetype="text/event-stream")


def forks(request):
    return {"children": [subprocess.Popen(["sleep", "600"], start_new_session=True).pid]}
