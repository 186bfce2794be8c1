"""A gRPC server with a good certificate that answers as a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from client.control import Identity
from shared.control.methods import METHODS
from shared.pki import Authority, certificate_request, new_key

Answer = Callable[[bytes, grpc.ServicerContext], Any]


class Liar:
    """What the server was asked, and what it is to answer."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.asked: list[tuple[str, bytes]] = []
        self.answers: dict[str, Answer] = {}
        self.stop = threading.Event()

    def answer(self, name: str, raw: bytes, context: grpc.ServicerContext) -> Any:
        self.asked.append((name, raw))
        return self.answers[name](raw, context)


def handlers(liar: Liar) -> list[grpc.GenericRpcHandler]:
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for name, method in METHODS.items():

        def call(raw: bytes, context: grpc.ServicerContext, name: str = name) -> Any:
            return liar.answer(name, raw, context)

        if method.streaming:
            made: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(call)
        else:
            made = grpc.unary_unary_rpc_method_handler(call)
        services.setdefault(method.service, {})[method.name] = made
    return [grpc.method_handlers_generic_handler(name, s) for name, s in services.items()]


def refuse(status: grpc.StatusCode, details: str = "", **metadata: str) -> Answer:
    """Return an answer that ends a call with a status."""

    def answer(raw: bytes, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata(tuple((k.replace("_", "-"), v) for k, v in metadata.items()))
        context.abort(status, details)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Return an answer that is another one each time; the last one stays."""
    left = list(answers)

    def answer(raw: bytes, context: grpc.ServicerContext) -> Any:
        return (left.pop(0) if len(left) > 1 else left[0])(raw, context)

    return answer


@contextmanager
def lying(authority: Authority, *, mutual: bool = True, chain: bytes = b"") -> Iterator[Liar]:
    """Serve on a free port of loopback; everything is gone afterwards."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
    issued = authority.issue_server(["127.0.0.1"], days=2)
    pair = (issued.key, issued.certificate + (chain or authority.certificate))
    root = authority.certificate if mutual else None
    credentials = grpc.ssl_server_credentials([pair], root, mutual)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    key = new_key()
    certificate = authority.sign_request(
        certificate_request(key, "clinic-1"), name="clinic-1", role="node", days=2
    )
    liar = Liar(
        Identity(
            address=f"127.0.0.1:{port}",
            ca=authority.certificate,
            certificate=certificate,
            key=key,
        )
    )
    server.add_generic_rpc_handlers(handlers(liar))
    server.start()
    try:
        yield liar
    finally:
        liar.stop.set()
        server.stop(None).wait(10)
