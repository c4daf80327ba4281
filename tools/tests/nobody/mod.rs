//! A place where nobody listens, and nobody can: a port that was only free a moment ago may be another's by now.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

/// The place, for as long as this is held.
pub(crate) struct Nobody {
    pub(crate) address: SocketAddr,
    _bound: OwnedFd,
}

impl Nobody {
    /// Has a port, and does not listen on it.
    pub(crate) fn listens() -> Self {
        let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&bound, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = getsockname(&bound).unwrap().try_into().unwrap();
        Self { address, _bound: bound }
    }
}
