//! A port that can be had again after a restart.
//!
//! Port 0 is good for one start. Once the gateway is gone, its port may go to anybody: to the next
//! listener with port 0, or as the near end of somebody's connection. So a gateway that starts again
//! on its port has one from below those that the kernel gives away, and keeps other tests off it by
//! holding the same port of UDP, which nobody else uses here.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::until;

/// Below the ports that kernels give away (`net.ipv4.ip_local_port_range`), above what is well known.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port that is this test's until it is dropped.
#[derive(Debug)]
pub struct Port {
    _held: UdpSocket,
    number: u16,
}

impl Port {
    /// A port that nobody has.
    #[must_use]
    pub fn reserve() -> Self {
        // Where to begin does not matter; that others begin elsewhere saves them looking.
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
