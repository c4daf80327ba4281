"""A client in Python that keeps its rooms: joins one, is cut, comes back with a Resume, and gets what it has missed."""

import socket
import sys

from client import MAXIMUM, code, kind, read
from google.protobuf import proto
from rooms import Rooms
from tidegate_demo_pb2 import JoinRoom, RoomMessage, SayInRoom
from tidegate_pb2 import Notice, Recovery, Request, Session

JOIN, SAY = 10, 12  # the demo backend's types


class Connection:
    """One connection. It reports all that comes to `rooms`, which outlive it, and shows it."""

    def __init__(self, port, rooms):
        self.sock = socket.create_connection(("127.0.0.1", int(port)), timeout=30)
        self.stream, self.out = self.sock.makefile("rb"), self.sock.makefile("wb")
        self.rooms, self.sequence = rooms, 0

    def log_in(self, user, token):
        self.ask(user_id=int(user), token=token, biz_data=self.rooms.resume().SerializeToString())

    def ask(self, **fields):
        """Sends a request, and takes what comes until it is answered."""
        self.sequence += 1
        proto.serialize_length_prefixed(Request(sequence=self.sequence, **fields), self.out)
        self.out.flush()
        while self.take().sequence != self.sequence:
            pass

    def take(self):
        response = read(self.stream, MAXIMUM)
        if response is None:
            raise EOFError("the gateway has closed")
        what, changes = kind(response), []
        if what == "authenticated":
            session = Session.FromString(response.biz_data)
            changes = self.rooms.opened(session)
            for room in session.rooms:
                print(room.name, Recovery.Name(room.recovery))
        elif what == "joined":
            room = Notice.FromString(response.biz_data).joined
            changes = self.rooms.joined(room)
            print("joined", room.name)
        elif what == "left":
            self.rooms.left(Notice.FromString(response.biz_data).left)
        elif what == "push":
            room, advice = self.rooms.pushed(response.room, response.offset)
            print(advice, room, RoomMessage.FromString(response.biz_data).text.decode())
        elif what in ("failed", "goodbye"):
            raise RuntimeError(f"{what} {code(response)}")
        for change in changes:
            print(*change)
        return response

    def say(self, text):
        self.ask(type=SAY, biz_data=SayInRoom(room="quiz", text=text).SerializeToString())

    def cut(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.rooms.disconnected()


def main(port, user, token):
    rooms = Rooms()
    first = Connection(port, rooms)
    first.log_in(user, token)
    first.ask(type=JOIN, biz_data=JoinRoom(room="quiz").SerializeToString())
    first.say(b"one")
    first.cut()

    other = Connection(port, Rooms())  # another device of the user, which is not in the room
    other.log_in(user, token)
    other.say(b"missed 1")
    other.say(b"missed 2")
    other.cut()

    again = Connection(port, rooms)
    again.log_in(user, token)
    again.say(b"newer")  # the answer comes after all that was missed
    print("end")


if __name__ == "__main__":
    main(*sys.argv[1:])
