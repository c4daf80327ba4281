"""Holds Python's protobuf, with the lines that PROTOCOL.md gives, to every test vector, and says what
the stock helper makes of the page's probes. See ../README.md for what it prints.
"""

import io
import json
import pathlib
import sys

from client import MAXIMUM, code, kind, read
from google.protobuf import proto
from google.protobuf.message import DecodeError
from rooms import Rooms
from tidegate_pb2 import Notice, Pong, Request, Response, Resume, Room, Session

VECTORS = pathlib.Path(sys.argv[1])
NUMBERS = ("user_id", "sequence", "offset")
checked = 0


def load(file):
    return json.loads((VECTORS / file).read_text())["vectors"]


def data(vector, key):
    if key in vector:
        return bytes.fromhex(vector[key])
    return b"".join(bytes.fromhex(part["hex"]) * part["times"] for part in vector[key + "_parts"])


def message(of, fields):
    """The message with a vector's fields."""
    fields = {key: int(value) if key in NUMBERS else value for key, value in fields.items()}
    biz_data = data(fields, "biz_data")
    fields = {key: value for key, value in fields.items() if not key.startswith("biz_data")}
    return of(biz_data=biz_data, **fields)


def same(vector, wanted, found):
    global checked
    checked += 1
    assert wanted == found, f"{vector['name']}: {wanted} is not {found}"


def without_unknown(read_message):
    read_message.DiscardUnknownFields()
    return read_message


def verdict(vector, refused, fails):
    """Whether the reader did as the vector says to the letter; if not, it has to be allowed."""
    global checked
    checked += 1
    if refused:
        print("refuses" if fails else "accepts", "python", vector["name"])
        assert fails or vector["sdk_may_accept"], f"accepts {vector}"
    else:
        assert not fails, f"refuses {vector}"
    return refused == fails


class OneByOne(io.RawIOBase):
    """A stream that gives a byte at a time."""

    def __init__(self, content):
        self.content = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, into):
        got = self.content.read(1)
        into[: len(got)] = got
        return len(got)


def room(fields):
    """The Room with a vector's fields."""
    fields = {**fields, "log": int(fields["log"]), "head": int(fields["head"])}
    return Room(**{**fields, "ticket": data(fields, "ticket")})


def resume(vector):
    """An authentication's positions, in both directions."""
    wanted, biz_data = Resume(), data(vector["request"], "biz_data")
    for fields in vector["resume"]["positions"]:
        position = wanted.positions.add(room=fields["room"], log=int(fields["log"]))
        position.offset, position.ticket = int(fields["offset"]), data(fields, "ticket")
    same(vector, wanted, without_unknown(Resume.FromString(biz_data)))
    if vector["resume"]["canonical"]:
        same(vector, biz_data, wanted.SerializeToString())


def requests():
    for vector in load("requests.json"):
        frame, wanted = data(vector, "frame"), message(Request, vector["request"])
        found = proto.parse_length_prefixed(Request, io.BytesIO(frame))
        same(vector, wanted, without_unknown(found))
        if vector["canonical"]:
            out = io.BytesIO()
            proto.serialize_length_prefixed(wanted, out)
            same(vector, frame, out.getvalue())
        if "resume" in vector:
            resume(vector)


def responses():
    for vector in load("responses.json"):
        found = without_unknown(read(io.BytesIO(data(vector, "frame")), MAXIMUM))
        same(vector, message(Response, vector["response"]), found)
        event = vector["event"]
        same(vector, event["kind"], kind(found))
        if "code" in event:
            same(vector, event["code"], code(found))
        inner = {"pong": Pong, "authenticated": Session}.get(event["kind"])
        inner = inner and without_unknown(inner.FromString(found.biz_data))
        for key in inner.DESCRIPTOR.fields_by_name if inner else ():
            wanted = [room(r) for r in event[key]] if key == "rooms" else int(event[key])
            same(vector, wanted, getattr(inner, key))
        if event["kind"] in ("joined", "left"):
            notice = without_unknown(Notice.FromString(found.biz_data))
            same(vector, room(event["room"]) if "room" in event else event["name"], getattr(notice, event["kind"]))


def memberships():
    for vector in load("memberships.json"):
        rooms = Rooms()
        for step in vector["steps"]:
            if "opened" in step:
                session_id = int(step["opened"]["session_id"])
                session = Session(session_id=session_id, rooms=[room(r) for r in step["opened"]["rooms"]])
                same(vector, step["changes"], [dict([change]) for change in rooms.opened(session)])
            elif "joined" in step:
                same(vector, step["changes"], [dict([change]) for change in rooms.joined(room(step["joined"]))])
            elif "left" in step:
                rooms.left(step["left"])
            elif "pushed" in step:
                wanted, push = (step["of"], step["delivery"]), step["pushed"]
                same(vector, wanted, rooms.pushed(push["room"], int(push["offset"])))
            elif "resume" in step:
                wanted = Resume()
                for fields in step["resume"]:
                    position = wanted.positions.add(room=fields["room"], log=int(fields["log"]))
                    position.offset, position.ticket = int(fields["offset"]), data(fields, "ticket")
                same(vector, wanted, rooms.resume())
            else:
                assert step == {"disconnected": True}
                rooms.disconnected()


def streams():
    for vector in load("streams.json"):
        stream = b"".join(data(chunk, "hex") for chunk in vector["chunks"])
        wanted = [p for chunk in vector["chunks"] for p in chunk["payloads"]]
        for source in (io.BytesIO(stream), io.BufferedReader(OneByOne(stream), 1)):
            payloads, end = [], "between frames"
            try:
                while (found := read(source, vector["payload_bytes_max"])) is not None:
                    payloads.append(found.SerializeToString().hex())
            except EOFError:
                end = "inside a frame"
            except (ValueError, DecodeError):
                end = "refused"
            refused = vector["ends"] == "refused"
            if verdict(vector, refused, end == "refused"):
                # A Request is no Response: compare how many there are, and what a Response says.
                same(vector, len(wanted), len(payloads))
                if vector["direction"] == "to_client":
                    same(vector, wanted, payloads)
            if not refused:
                whole = vector["incomplete_bytes"] == 0
                same(vector, "between frames" if whole else "inside a frame", end)


def malformed():
    for vector in load("malformed.json"):
        fails = False
        try:
            found = read(io.BytesIO(data(vector, "stream")), vector["payload_bytes_max"])
            if found is not None:
                kind(found)
        except (EOFError, ValueError, DecodeError):
            fails = True
        if vector["direction"] == "to_client" or vector["refused_as"] == "frame":
            verdict(vector, True, fails)


def probes():
    for probe in ("too_long", "ffffffff0f", "8080808010", "8000", "060802"):
        if probe == "too_long":  # a whole frame of one byte too many
            stream = bytes.fromhex("8180401afdff3f") + bytes(MAXIMUM - 3)
        else:
            stream = bytes.fromhex(probe)
        try:
            found = proto.parse_length_prefixed(Response, io.BytesIO(stream))
            empty = "empty message" if found == Response() else "accepts"
            outcome = "half a message" if probe == "060802" else empty
        except (EOFError, ValueError, DecodeError, OverflowError):
            outcome = "refuses"
        print("probe python", probe, outcome)


requests()
responses()
memberships()
streams()
malformed()
probes()
print("checked", checked)
