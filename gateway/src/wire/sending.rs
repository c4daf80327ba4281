//! What goes out: what the core sends, what a wire sends on its own account, and the end.

use bytes::Bytes;

use super::Wires;
use super::flow::Flow;
use super::kinds::Kind;
use crate::driver::{ConnId, Driver, Event, SendState, Sink};

impl Wires {
    /// Queues what a wire has to send on its own account.
    pub(super) fn push_own(&mut self, conn: ConnId) {
        if self.out.is_empty() {
            return;
        }
        if self.open.is_shut_down(conn) {
            return self.out.clear();
        }
        let bytes = Bytes::copy_from_slice(&self.out);
        self.out.clear();
        self.flows.entry(conn).or_default().push(bytes, 0);
        self.unblocked.push(conn);
    }

    /// Queues the wire's goodbye, if there is one: behind whatever waits.
    pub(super) fn push_goodbye(&mut self, conn: ConnId) {
        self.open.goodbye(conn, &mut self.out);
        if !self.out.is_empty() {
            let bytes = Bytes::copy_from_slice(&self.out);
            self.out.clear();
            self.flows.entry(conn).or_default().push(bytes, 0);
        }
    }

    /// Counts bytes of the core that can't be said to the peer: its wire is not open, or no more. `false`: no such connection.
    pub(super) fn lose(&mut self, conn: ConnId, bytes: usize) -> bool {
        match self.opening.get_mut(&conn) {
            Some(opening) => {
                opening.lost_bytes += bytes;
                true
            }
            None => self.open.lose(conn, bytes),
        }
    }

    pub(super) fn send(
        &mut self,
        conn: ConnId,
        bytes: &Bytes,
        driver: &mut impl Driver,
    ) -> SendState {
        let core_bytes = bytes.len();
        if self.lingering.contains(conn) {
            return SendState::Done;
        }
        let Some(encoded) = self.open.encode(conn, bytes) else {
            if self.lose(conn, core_bytes) {
                return SendState::Done;
            }
            // The slot is another connection's now. The driver ignores the send.
            return driver.send(conn, bytes.clone());
        };
        if let Some(flow) = self.flows.get_mut(&conn) {
            flow.push(encoded, core_bytes);
            return SendState::UnderWay;
        }
        let state = driver.send(conn, encoded);
        if state == SendState::UnderWay {
            self.flows.insert(conn, Flow::started(core_bytes));
        }
        state
    }

    pub(super) fn reply(&mut self, conn: ConnId, sink: &mut impl Sink) -> Option<Bytes> {
        if self.flows.contains_key(&conn) {
            return None;
        }
        let bytes = sink.reply(conn)?;
        let Some(encoded) = self.open.encode(conn, &bytes) else {
            self.lose(conn, bytes.len());
            sink.event(Event::Sent { conn, bytes: bytes.len() });
            return None;
        };
        self.flows.insert(conn, Flow::started(bytes.len()));
        Some(encoded)
    }

    /// A send of the driver below is done.
    pub(super) fn sent(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(flow) = self.flows.get_mut(&conn) else { return };
        let bytes = flow.finish();
        if flow.is_empty() && !flow.shuts_down {
            self.flows.remove(&conn);
            self.lingering.all_is_sent(conn);
        } else {
            self.unblocked.push(conn);
        }
        if bytes > 0 {
            sink.event(Event::Sent { conn, bytes });
        }
    }

    /// Starts what waits to be sent on a connection, if the driver has no send of it. Calls `sent` for each send of the core that
    /// is done at once.
    pub(super) fn pump(
        &mut self,
        conn: ConnId,
        driver: &mut impl Driver,
        mut sent: impl FnMut(usize),
    ) {
        while let Some(flow) = self.flows.get_mut(&conn) {
            let Some(bytes) = flow.start_next() else {
                if flow.is_empty() {
                    if self.flows.remove(&conn).is_some_and(|flow| flow.shuts_down) {
                        driver.shutdown(conn);
                    }
                    self.lingering.all_is_sent(conn);
                }
                return;
            };
            if driver.send(conn, bytes) == SendState::UnderWay {
                return;
            }
            let core_bytes = self.flows.get_mut(&conn).map_or(0, Flow::finish);
            if core_bytes > 0 {
                sent(core_bytes);
            }
        }
    }

    pub(super) fn shutdown(&mut self, conn: ConnId, driver: &mut impl Driver) {
        self.push_goodbye(conn);
        self.open.shut_down(conn);
        if self.stop_waiting(conn) {
            driver.resume_receive(conn);
        }
        if let Some(opening) = self.opening.get_mut(&conn) {
            // Its next step could say no more.
            opening.fail();
        }
        let flow = self.flows.entry(conn).or_default();
        flow.shuts_down = true;
        // A send of the core that waits here waits for one that is under way: so none is done at once.
        self.pump(conn, driver, |_| {});
    }

    /// Sends the wire's goodbye before a close, unless a send of the core is under way, which the close cuts. `false`: the
    /// connection lingers, and is closed later.
    pub(super) fn closes(&mut self, conn: ConnId, driver: &mut impl Driver) -> bool {
        if self.lingering.contains(conn) {
            return false;
        }
        if self.flows.get(&conn).is_some_and(Flow::carries_core_bytes) {
            return true;
        }
        if self.stop_waiting(conn) {
            driver.resume_receive(conn);
        }
        let awaits_end = self.open.may_still_send(conn);
        self.push_goodbye(conn);
        self.open.shut_down(conn);
        if awaits_end {
            self.flows.entry(conn).or_default().shuts_down = true;
        }
        self.pump(conn, driver, |_| {});
        let lingers = awaits_end || self.flows.contains_key(&conn);
        if lingers {
            self.linger(conn, awaits_end);
        }
        !lingers
    }

    pub(super) fn linger(&mut self, conn: ConnId, awaits_end: bool) {
        self.kinds.set(conn.slot, Kind::Opening);
        let lost_bytes = self.forget_opening(conn) + self.open.remove(conn);
        self.lingering.insert(conn, awaits_end, lost_bytes, self.now());
    }

    /// Forgets that the connection's wire is being opened. Says how many bytes of the core were lost.
    pub(super) fn forget_opening(&mut self, conn: ConnId) -> usize {
        self.stop_waiting(conn);
        self.opening.remove(&conn).map_or(0, |opening| opening.lost_bytes)
    }

    /// Closes the connections that need not linger any longer.
    pub(super) fn end_lingering(&mut self, driver: &mut impl Driver) {
        while let Some(conn) = self.lingering.next_done(self.now) {
            driver.close(conn);
        }
    }
}
