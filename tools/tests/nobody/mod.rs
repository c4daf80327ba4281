//! An address on which nobody listens, and nobody can. A port that was just found free could be taken meanwhile.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

/// The address, reserved until this is dropped.
pub(crate) struct Nobody {
    pub(crate) address: SocketAddr,
    _bound: OwnedFd,
}

impl Nobody {
    /// Binds a port without listening on it.
    pub(crate) fn listens() -> Self {
        let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&bound, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = getsockname(&bound).unwrap().try_into().unwrap();
        Self { address, _bound: bound }
    }
}
