//! The addresses of connections, as far as limits by address need them.
//!
//! A connection has an entry while it is counted: none where there is no limit, or the address is exempt. So it costs
//! memory only where there are limits: the shard's connections do not grow.

use std::net::IpAddr;

use crate::config::Config;
use crate::conn_table::Table;
use crate::driver::ConnId;
use crate::limits::addresses::{AddressLimits, Refusal};

/// The addresses of a shard's connections.
#[derive(Debug)]
pub struct Arrivals {
    /// A bit for each of the driver's listening sockets whose connections begin with a PROXY header.
    proxied: u64,
    counted: Table<Option<IpAddr>>,
}

impl Arrivals {
    /// No connection yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let plain = u32::from(config.listen.is_some());
        let proxied = (plain..).zip(&config.listeners).map(|(number, listener)| {
            if listener.proxy_from.is_empty() { 0 } else { 1_u64 << number }
        });
        Self { proxied: proxied.fold(0, |all, one| all | one), counted: Table::default() }
    }

    /// Whether the address of a connection to this listening socket is a balancer's, and its client's is still to come.
    #[must_use]
    pub const fn is_proxied(&self, listener: u8) -> bool {
        self.proxied >> listener & 1 == 1
    }

    /// A connection has come, or its address has become known.
    ///
    /// # Errors
    /// It is not to be served.
    pub fn arrived(
        &mut self,
        conn: ConnId,
        address: IpAddr,
        limits: &AddressLimits,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        if limits.accept(address, now_ms * 1000)? {
            self.counted.insert(conn, Some(address));
        }
        Ok(())
    }

    /// A connection is closed.
    #[inline]
    pub fn left(&mut self, conn: ConnId, limits: &AddressLimits) {
        if let Some(address) = self.counted.remove(conn).flatten() {
            limits.close(address);
        }
    }

    /// A login on this connection has failed.
    pub fn login_failed(&mut self, conn: ConnId, limits: &AddressLimits, now_ms: u64) {
        if let Some(address) = self.counted.get_mut(conn).copied().flatten() {
            limits.login_failed(address, now_ms * 1000);
        }
    }

    /// Frees memory that a storm has left.
    pub fn free_spare_memory(&mut self) {
        self.counted.free_spare_memory();
    }
}
