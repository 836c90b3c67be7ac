"""A chat server that fails in every way: the OpenAI API over the standard library."""

import json
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-0123456789abcdef"
REST = "欲窮千里目，更上一層樓。"
FAULTS = (*("busy", "500", "hang", "cut", "half", "truncated", "page", "empty", "wrong", "drip"),)
HANG = 8.0  # seconds


def completion(text, **more):
    """A body as a server sends it."""
    message = {"role": "assistant", "content": text} | more
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def mark():
    """A judge's 7 points as a server sends them."""
    function = {"name": "auto_grader", "arguments": '{"score": 7, "reason": "好"}'}
    return completion(None, tool_calls=[{"id": "1", "function": function}])


def poem_or_mark(body):
    """The same rest of every poem, and the same mark."""
    return 200, mark() if "tools" in body else completion(REST)


class Listener:
    """A bare socket whose `answer(client)` says what a test wants, each client in a thread."""

    def __init__(self):
        self.stop = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def serve(self):
        while not self.stop.is_set():
            with suppress(OSError):
                client, _ = self.socket.accept()
                threading.Thread(target=self.answer, args=(client,), daemon=True).start()


class Server(ThreadingHTTPServer):
    """Answers with `answer(body)`: a status, a body and, if any, headers; or fails as
    `fault(number)` says.

    Keeps what was asked, with which headers, and what was answered.
    """

    daemon_threads = True
    request_queue_size = 128  # the library's 5 resets connections of a client that asks 24 at once

    def __init__(self, answer=None, fault=None, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.answer = answer or (lambda body: (200, completion(REST)))
        self.fault = fault or (lambda number: None)
        self.asked, self.answered, self.headers = [], [], []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.asked)
            server.asked.append(body)
            server.headers.append(dict(self.headers))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            if fault := server.fault(number):
                self.fail(fault, server.answer(body)[1])
            else:
                status, answer, *headers = server.answer(body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send(status, content, **dict(*headers))
                server.answered.append(body)
        finally:
            with server.lock:
                server.at_once -= 1

    def send(self, status, content, kind="application/json", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def fail(self, fault, answer):
        whole = json.dumps(answer).encode()
        # Said, or the client asks on a connection that is about to close: that is another fault
        send = partial(self.send, Connection="close")
        if fault == "busy":
            send(429, b'{"error": {"message": "slow down"}}', Retry_After="0.2")
        elif fault == "500":
            send(500, b"<h1>oops</h1>", "text/html")
        elif fault == "hang":
            time.sleep(HANG)
        elif fault == "half":  # of what was announced
            send(200, whole[: len(whole) // 2], length=len(whole))
        elif fault == "truncated":  # announced so
            send(200, whole[: len(whole) // 2])
        elif fault == "page":
            send(200, b"<html>log in first</html>", "text/html")
        elif fault == "empty":
            send(200, b"")
        elif fault == "wrong":
            send(200, b'{"choices": []}')
        elif fault == "drip":  # a byte at a time, so that no single wait is long
            send(200, b"", length=10**6)
            for _ in range(int(HANG * 10)):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        self.close_connection = True
