//! A port that refuses connections. It is bound and does not listen, so no other process can take it meanwhile.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

/// The address, reserved until this is dropped.
pub(crate) struct RefusingPort {
    pub(crate) address: SocketAddr,
    _bound: OwnedFd,
}

impl RefusingPort {
    /// Binds a port without listening on it.
    pub(crate) fn reserve() -> Self {
        let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&bound, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = getsockname(&bound).unwrap().try_into().unwrap();
        Self { address, _bound: bound }
    }
}
