//! A port that is still free after a restart.
//!
//! Port 0 works for one start. When the gateway has ended, the kernel may give its port to the next listener with
//! port 0, or to an outgoing connection. So a gateway that restarts on its port uses one below the kernel's range. It
//! also binds the UDP port of the same number, which keeps other tests from choosing it.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::until;

/// Below the ports that the kernel assigns (`net.ipv4.ip_local_port_range`), above the well-known ones.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port that no other test uses until this is dropped.
#[derive(Debug)]
pub struct Port {
    _held: UdpSocket,
    number: u16,
}

impl Port {
    /// Reserves a free port.
    #[must_use]
    pub fn reserve() -> Self {
        // Processes start at different ports, so that they rarely try the same one.
        let mut candidates = PORTS.cycle().skip(std::process::id() as usize * 61 % PORTS.len());
        until("a free port", || {
            let number = candidates.next()?;
            let held = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
            TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
            Some(Self { _held: held, number })
        })
    }

    /// The port.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }
}
