//! Connections whose wire opens late: while the gateway drains, or after a wait.

use std::time::Duration;

use tidegate::driver::sim::{Arrived, Faults, Sim};
use tidegate::wire::Wired;
use tidegate_backend::Code;
use tidegate_testing::wire::{WireClient, WireKind};
use tidegate_testing::{Cause, Peer, Phone, Setup, World, login, sim, wired};

/// A client, and what it has received.
struct Client {
    phone: Phone,
    wire: WireClient,
}

fn world(kind: WireKind) -> World<Wired<Sim>> {
    let driver = |shard: u16, now| wired(kind, sim(shard.into(), now, Faults::default()));
    Setup::scripted(|_| {}).world_on(driver)
}

impl Client {
    fn new(world: &mut World<Wired<Sim>>, kind: WireKind) -> Self {
        Self { phone: Phone::on(world.connect(0)), wire: WireClient::new(kind, 7) }
    }

    /// Moves bytes for some turns.
    fn pass(&mut self, world: &mut World<Wired<Sim>>) {
        let peer: Peer = self.phone.peer;
        for _ in 0..20 {
            let written = world.write(peer, &self.wire.out);
            self.wire.out.drain(..written);
            world.turns(1);
            match world.read_at_most(peer, usize::MAX) {
                Arrived::Bytes(bytes) => {
                    self.wire.receive(&bytes);
                    let received = std::mem::take(&mut self.wire.received);
                    if !received.is_empty() {
                        self.phone.take(Arrived::Bytes(received.into()));
                    }
                }
                end => {
                    self.phone.take(end);
                }
            }
        }
    }
}

#[test]
fn a_connection_that_opens_while_the_gateway_drains_gets_108() {
    for kind in WireKind::WIRES {
        let mut world = world(kind);
        let mut begun = Client::new(&mut world, kind);
        world.turns(2);
        let mut late = Client::new(&mut world, kind);
        world.drain();
        world.turns(2);
        for client in [&mut begun, &mut late] {
            assert_eq!(client.phone.end, None, "{kind:?}");
            client.pass(&mut world);
            assert_eq!(client.phone.last_code(), Some(Code::Draining), "{kind:?}");
            assert!(client.phone.received[0].retry_after_ms > 0);
            world.half_close(client.phone.peer);
        }
        world.pass(Duration::from_secs(1));
        assert_eq!((world.closed(Cause::Draining), world.is_finished()), (2, true), "{kind:?}");
    }
}

#[test]
fn a_connection_that_never_opens_holds_no_drain_beyond_its_end() {
    for kind in WireKind::WIRES {
        let mut world = world(kind);
        let silent = Client::new(&mut world, kind);
        world.turns(2);
        world.pass(Duration::from_secs(1));
        world.drain();
        world.pass(Duration::from_secs(1));
        assert!(!world.is_finished());
        world.pass(world.config().shutdown.drain_timeout + Duration::from_secs(3));
        assert!(world.is_finished(), "{kind:?} {:?}", silent.phone.end);
    }
}

#[test]
fn the_time_to_authenticate_begins_when_the_wire_is_open() {
    for kind in WireKind::WIRES {
        let mut world = world(kind);
        let mut client = Client::new(&mut world, kind);
        world.turns(2);
        world.pass(Duration::from_secs(9));
        client.pass(&mut world);
        assert!(client.wire.is_open(), "{kind:?}");
        world.pass(Duration::from_secs(9));
        client.wire.send(&login(7, 1));
        client.pass(&mut world);
        assert_eq!(client.phone.end, None, "{kind:?}");
        assert!(client.phone.session().session_id != 0);
        // It ends, too.
        let mut silent = Client::new(&mut world, kind);
        silent.pass(&mut world);
        world.pass(world.config().auth.timeout + Duration::from_secs(1));
        silent.pass(&mut world);
        assert_eq!(silent.phone.last_code(), Some(Code::Idle), "{kind:?}");
        assert_eq!(world.closed(Cause::AuthTimeout), 1);
    }
}
