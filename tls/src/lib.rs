//! One connection's TLS, over rustls' [unbuffered API](rustls::unbuffered), for either side of the connection.
//!
//! A [`Session`] decrypts what was received and encrypts what is to be sent. It does no I/O and reads no clock. The caller
//! owns the socket and all buffers, and an idle session owns none: so one process can hold very many connections.
//! The gateway uses [`ServerSession`], and `tide` uses [`ClientSession`].
//!
//! | method | what it does |
//! |---|---|
//! | [`Session::receive`] | takes received bytes; appends decrypted bytes, and what TLS itself has to send |
//! | [`Session::encrypt`] | appends the records that carry bytes |
//! | [`Session::close`] | appends `close_notify` |
//! | [`Session::is_handshaking`] | whether bytes can't be sent yet |
//!
//! # What it adds to rustls
//!
//! - **A session that has failed stays failed.** rustls keeps positions of handshake messages in the bytes that it was given. When
//!   it is called with other bytes after an error, it may panic. A hostile peer could cause that, so after an error each
//!   method returns an error and does not call rustls.
//! - **Incomplete records are kept, and their bytes are bounded.** A caller passes received bytes as they come, cut anywhere. A peer
//!   that sends a handshake message without an end gets an error at [`Side::REST_BYTES_MAX`].
//! - **Output is complete.** What TLS has to send (the handshake, an alert, a key update) is in the caller's buffer when the method
//!   returns.
//!
//! It does not accept or send early data: leave `max_early_data_size` and `enable_early_data` at their defaults.
//!
//! # Example
//!
//! A client and a server, without a network between them:
//!
//! ```
//! # use std::sync::Arc;
//! # use rustls::crypto::ring;
//! # use rustls::pki_types::PrivatePkcs8KeyDer;
//! # use rustls::{ClientConfig, RootCertStore, ServerConfig};
//! use tidegate_tls::{ClientSession, Received, ServerSession};
//!
//! # let rcgen::CertifiedKey { cert, signing_key } =
//! #     rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
//! # let mut roots = RootCertStore::empty();
//! # roots.add(cert.der().clone())?;
//! # let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
//! # let provider = Arc::new(ring::default_provider());
//! # let server_config = ServerConfig::builder_with_provider(Arc::clone(&provider))
//! #     .with_safe_default_protocol_versions()?
//! #     .with_no_client_auth()
//! #     .with_single_cert(vec![cert.der().clone()], key.into())?;
//! # let client_config = ClientConfig::builder_with_provider(provider)
//! #     .with_safe_default_protocol_versions()?
//! #     .with_root_certificates(roots)
//! #     .with_no_client_auth();
//! let mut client = ClientSession::new(Arc::new(client_config), "localhost".try_into()?)?;
//! let mut server = ServerSession::new(Arc::new(server_config))?;
//! let (mut to_server, mut to_client, mut payload) = (Vec::new(), Vec::new(), Vec::new());
//!
//! // A client sends first: without received bytes, it begins the handshake.
//! client.receive(&mut [], &mut to_server, &mut payload)?;
//! while client.is_handshaking() || server.is_handshaking() {
//!     server.receive(&mut to_server, &mut to_client, &mut payload)?;
//!     to_server.clear();
//!     client.receive(&mut to_client, &mut to_server, &mut payload)?;
//!     to_client.clear();
//! }
//!
//! client.encrypt(b"hello", &mut to_server)?;
//! client.close(&mut to_server)?;
//! assert_eq!(server.receive(&mut to_server, &mut to_client, &mut payload)?, Received::Ended);
//! assert_eq!(payload, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! `fixture`: what tests and fuzzers need: see the module `fixture`.

#![forbid(unsafe_code)]

#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
mod session;
mod side;
#[cfg(test)]
mod tests;

pub use session::{ClientSession, Received, ServerSession, Session, has_record};
pub use side::Side;

/// The most payload of one record (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// What a record adds to its payload, at most: a header of 5 bytes, the content's type, and a tag of 16 bytes. With TLS 1.2
/// there are 8 bytes of nonce.
const RECORD_OVERHEAD: usize = 5 + 1 + 16 + 8;

/// The most bytes of one record as they are received (RFC 5246, section 6.2.3).
pub const RECEIVED_RECORD_BYTES_MAX: usize = 5 + RECORD_BYTES_MAX + 2048;
