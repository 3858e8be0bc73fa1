"""An endpoint on this machine that speaks OpenAI's protocol, or Gemini's, and misbehaves where a test tells it to."""

import base64
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from PIL import Image

READING = (
    "A frontal film of good quality. I look at devices, heart, mediastinum, lungs, pleura and bones in turn. "
    "What I see there is described side by side with what is normal, and the evidence decides in the end."
)


class Seen(NamedTuple):
    """A request as it came in."""

    path: str
    headers: dict
    body: dict

    @property
    def text(self) -> str:
        """The words of the question."""
        if "contents" in self.body:
            return self.body["contents"][0]["parts"][-1]["text"]
        return self.body["messages"][0]["content"][-1]["text"]

    @property
    def png(self) -> bytes:
        """The film that came with it."""
        if "contents" in self.body:
            return base64.urlsafe_b64decode(self.body["contents"][0]["parts"][0]["inlineData"]["data"])
        url = self.body["messages"][0]["content"][0]["image_url"]["url"]
        return base64.b64decode(url.removeprefix("data:image/png;base64,"))

    @property
    def number(self) -> int:
        """Which film of a test it is: the grey of its first pixel."""
        return Image.open(io.BytesIO(self.png)).getpixel((0, 0))

    @property
    def labels(self) -> str:
        return re.search("exactly these labels: (.*)", self.text)[1]


class Sent(NamedTuple):
    """What goes back: `cut` sends half of it, or with `body` empty nothing at all, and hangs up."""

    body: bytes
    status: int = 200
    headers: dict = {}  # noqa: RUF012
    cut: bool = False


def completion(text: str, finish: str = "stop", tokens: tuple[int, int] = (1000, 100), **more) -> Sent:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    used = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": used}
    return Sent(json.dumps(reply | more).encode())


def fine(request: Seen) -> Sent:
    """A valid trace."""
    return completion(trace(request.labels))


def trace(labels: str, reading: str = READING) -> str:
    return f"<think>{reading}</think>\n<solution>{labels}</solution>"


class Endpoint(ThreadingHTTPServer):
    """Answers each request with what `behave(request)` gives; `seen` holds all requests in the order of arrival."""

    daemon_threads = True

    def __init__(self, behave=fine):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave, self.seen, self._lock = behave, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, address):
        """A client that hangs up, as a killed one does, is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = Seen(self.path, dict(self.headers), body)
        with self.server._lock:
            self.server.seen.append(request)
        sent = self.server.behave(request)
        if sent.cut:
            self.close_connection = True
        if sent.body:
            self.send_response(sent.status)
            for name, value in {"Content-Type": "application/json", **sent.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(sent.body)))
            self.end_headers()
            self.wfile.write(sent.body[: len(sent.body) // 2] if sent.cut else sent.body)

    def log_message(self, *about):
        """Quiet."""
