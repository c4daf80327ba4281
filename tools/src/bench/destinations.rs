//! The places that connections go to, and the wire of each.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};

use crate::wire::{Dialer, Place, Target, Trust, Wire, WireError};

/// The places of a run.
#[derive(Clone, Debug)]
pub(super) struct Destinations {
    targets: Arc<[Target]>,
    dialer: Dialer,
}

/// Names one of them. 16 bits fit into what would be padding of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destination(u16);

impl Destinations {
    /// These places.
    ///
    /// # Errors
    /// There are too many, or the certificate authorities can't be read.
    pub(super) fn new(trust: &Trust, targets: &[Target]) -> Result<Self> {
        u16::try_from(targets.len()).context("--connect names more than 65535 places")?;
        let dialer = Dialer::new(trust, targets.iter().map(|target| &target.place))?;
        Ok(Self { targets: targets.into(), dialer })
    }

    /// The place with this address.
    pub(super) fn at(&self, address: SocketAddr) -> Result<Destination> {
        let index = self.targets.iter().position(|target| target.address == address);
        let index = index.and_then(|index| u16::try_from(index).ok());
        index.map(Destination).with_context(|| format!("no --connect names {address}"))
    }

    /// Its address.
    pub(super) fn address(&self, destination: Destination) -> SocketAddr {
        self.targets[usize::from(destination.0)].address
    }

    /// The place.
    pub(super) fn place(&self, destination: Destination) -> &Place {
        &self.targets[usize::from(destination.0)].place
    }

    /// Begins a wire, and appends its first bytes to `out`. `None`: connections there are plain.
    ///
    /// # Errors
    /// It can't begin.
    pub(super) fn start(
        &self,
        destination: Destination,
        out: &mut Vec<u8>,
    ) -> Result<Option<Wire>> {
        let Target { place, address } = &self.targets[usize::from(destination.0)];
        self.dialer.start(place, *address, out).map_err(|error| self.explained(destination, &error))
    }

    /// The error of a wire there, with what to do.
    pub(super) fn explained(&self, destination: Destination, error: &WireError) -> anyhow::Error {
        anyhow!(error.explain(self.place(destination)))
    }
}
