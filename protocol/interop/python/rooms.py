"""A client's rooms, kept across its connections: what PROTOCOL.md, section 8, asks of an SDK."""

from tidegate_pb2 import Resume

NOT_ASKED, COMPLETE, REFUSED = 0, 1, 3  # Recovery; all others are as GAP


# PROTOCOL.md: python
def after(offset):
    """The highest offset that the next push may have without a gap. A log's first push may have any."""
    return offset + 1 if offset else 2**64


class Rooms:
    def __init__(self):
        self.rooms = {}  # by name: number, log, ticket, seen, position, next
        self.session_id = None

    def resume(self):
        """For the next authentication."""
        resume = Resume()
        for name, room in self.rooms.items():
            if name == "*" or room["ticket"]:
                known = room["position"] is not None
                position = resume.positions.add(room=name, ticket=room["ticket"])
                position.log = room["log"] if known else 0
                position.offset = room["position"] if known else 0
        return resume

    def disconnected(self):
        for room in self.rooms.values():
            room["number"] = 0

    def opened(self, session):
        """A Session has come. Gives what to tell the app."""
        if session.session_id != self.session_id:  # else a second authentication
            self.session_id = session.session_id
            self.disconnected()
        changes = [change for room in session.rooms for change in self.joined(room)]
        for name in [name for name, room in self.rooms.items() if room["number"] == 0]:
            del self.rooms[name]
            changes.append(("refused", name))
        return changes

    def joined(self, new):
        """A Room has come, in a Session or a Notice. Gives what to tell the app."""
        if new.recovery == REFUSED or new.number == 0:
            self.rooms.pop(new.name, None)
            return [("refused", new.name)]
        room = self.rooms.get(new.name)
        if room is None:  # joined by the backend; COMPLETE: after a position that only the app knows
            position = None if new.recovery == COMPLETE else new.head
            self.rooms[new.name] = {"seen": 0, "position": position, "next": after(new.head)}
            gap = new.recovery not in (NOT_ASKED, COMPLETE)
        else:
            same_log = room["log"] == new.log and room["seen"] <= new.head
            at = room["position"] if same_log else None
            known = at is not None and at <= new.head
            is_member = room["number"] != 0 and same_log
            gap = not (
                new.recovery in (NOT_ASKED, COMPLETE) and is_member
                or new.recovery == COMPLETE and known
                or new.recovery == NOT_ASKED and known and at == new.head
            )
            if gap:
                seen = room["seen"] if same_log else 0
                room.update(seen=seen, position=new.head, next=after(new.head))
            elif new.recovery == COMPLETE and not is_member:
                room.update(seen=at, next=after(at))
        self.rooms[new.name].update(number=new.number, log=new.log, ticket=new.ticket)
        return [("gap", new.name)] if gap else []

    def left(self, name):
        self.rooms.pop(name, None)

    def pushed(self, number, offset):
        """What to do with a push: its room's name, and "deliver", "gap and deliver" or "drop"."""
        for name, room in self.rooms.items():
            if number != 0 and room["number"] == number:
                if offset == 0:
                    return name, "deliver"  # in no log
                if offset <= room["seen"]:
                    return name, "drop"
                gap = offset > room["next"]
                room.update(seen=offset, position=offset, next=offset + 1)
                return name, "gap and deliver" if gap else "deliver"
        return None, "deliver"  # to this user; or of a room that is not known
# end
