"""A client in Python, with protobuf and nothing else: what the author of an SDK writes first.

Logs in, sends a request, gets a push and a pong, and leaves without losing an answer.
"""

import socket
import sys

from google.protobuf import proto
from tidegate_pb2 import Notice, Pong, Request, Response, Session

MAXIMUM = 1024 * 1024  # longest payload from a gateway, in bytes


# PROTOCOL.md: python
def read(stream, maximum):
    length, shift, byte = 0, 0, b"\x80"
    while byte[0] >= 0x80:
        byte = stream.read(1)
        if not byte and shift == 0:
            return None  # the end of the stream
        if not byte:
            raise EOFError("the stream ends inside a length")
        if shift == 28 and byte[0] >= 0x80:
            raise ValueError("malformed length")
        length |= (byte[0] & 0x7F) << shift
        shift += 7
    if length > maximum:
        raise ValueError(f"a frame of {length} bytes")
    payload = stream.read(length)
    if len(payload) < length:
        raise EOFError("the stream ends inside a frame")
    return Response.FromString(payload)
# end


def kind(response):
    """What a response is to a client."""
    if response.status != 1:
        return "failed" if response.type or response.sequence else "goodbye"
    if response.type == -1:
        Pong.FromString(response.biz_data)
        return "pong"
    if response.type == 0:
        Session.FromString(response.biz_data)
        return "authenticated"
    if response.type == -2:
        return Notice.FromString(response.biz_data).WhichOneof("what") or "ignored"
    if response.type < -1:
        return "ignored"
    return "answer" if response.sequence else "push"


def code(response):
    """The error code of a failure; None where it holds none."""
    return int.from_bytes(response.biz_data, "big") if len(response.biz_data) == 4 else None


def show(response):
    what = kind(response)
    text = response.biz_data.decode(errors="replace") if what in ("answer", "push") else ""
    if what in ("failed", "goodbye"):
        text = str(code(response))
    print(f"{what} {text}".strip())


def main(port, user, token):
    with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as sock:
        # Buffered, in both directions: read(n) gives n bytes, or fewer only at the end.
        stream, out, waiting = sock.makefile("rb"), sock.makefile("wb"), set()

        def send(**fields):
            waiting.add(send.sequence)
            proto.serialize_length_prefixed(Request(sequence=send.sequence, **fields), out)
            out.flush()
            send.sequence += 1

        send.sequence = 1
        send(user_id=int(user), token=token)
        show(read(stream, MAXIMUM))  # no business before the session
        waiting.clear()
        for kind_asked in (1, 2, -1, 100):
            send(type=kind_asked, biz_data=b"hello")
        pushed = False
        while waiting or not pushed:  # the push may come before its answer
            response = read(stream, MAXIMUM)
            if response is None:
                raise EOFError("the gateway has closed")
            pushed |= kind(response) == "push"
            waiting.discard(response.sequence)
            show(response)
        sock.shutdown(socket.SHUT_WR)  # half-close: what was asked is still answered
        while read(stream, MAXIMUM) is not None:
            pass
        print("end")


if __name__ == "__main__":
    main(*sys.argv[1:])
