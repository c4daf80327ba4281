//! What differs between a server and a client.

use std::ops::DerefMut;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{UnbufferedConnectionCommon, UnbufferedStatus};

use crate::RECEIVED_RECORD_BYTES_MAX;

/// A side of a connection: rustls' unbuffered server or client. Nothing else can be one.
pub trait Side:
    DerefMut<Target = UnbufferedConnectionCommon<<Self as Side>::Data>> + sealed::Sealed
{
    /// What rustls keeps for this side alone.
    type Data;

    /// The most bytes that a session keeps of an unfinished record, or of a handshake message in several records.
    const REST_BYTES_MAX: usize;

    /// rustls' method of the same name, which both sides have, each in an `impl` of its own.
    fn process_tls_records<'c, 'i>(
        &'c mut self,
        bytes: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for UnbufferedServerConnection {}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    /// A client's certificates fit.
    const REST_BYTES_MAX: usize = RECEIVED_RECORD_BYTES_MAX;

    fn process_tls_records<'c, 'i>(
        &'c mut self,
        bytes: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        UnbufferedConnectionCommon::<ServerConnectionData>::process_tls_records(self, bytes)
    }
}

impl sealed::Sealed for UnbufferedClientConnection {}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    /// The longest handshake message that rustls reads (64 KiB), in full records: a server's chain of certificates may be long,
    /// and a client chooses its server.
    const REST_BYTES_MAX: usize = 4 * RECEIVED_RECORD_BYTES_MAX;

    fn process_tls_records<'c, 'i>(
        &'c mut self,
        bytes: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        UnbufferedConnectionCommon::<ClientConnectionData>::process_tls_records(self, bytes)
    }
}
