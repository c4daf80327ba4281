//! The Tidegate wire protocol: frames, messages, error codes, limits, and both ends of a connection.
//!
//! Everything here is *sans-IO*: bytes and time go in, bytes and events come out. There is no
//! socket, no clock and no thread, so the same code runs in the gateway, in an SDK, in the load
//! generator and under a fuzzer. `PROTOCOL.md` beside this crate is the reference.
//!
//! | module | what it owns |
//! |---|---|
//! | [`frame`] | the bytes of a stream <-> the payload of one frame |
//! | [`message`] | the payload of a frame <-> a [`Request`] or a [`Response`], borrowed, no allocation |
//! | [`code`] | the error codes |
//! | [`limits`] | sizes, intervals and their defaults |
//! | [`server`] | what the gateway's end reads and writes |
//! | [`resume`] | the positions that an authentication carries, borrowed, no allocation |
//! | [`client`] | what a client's end reads and writes: the core of an SDK |
//! | [`memberships`] | the rooms of a client, across its connections |
//! | [`proto`] | the same messages as prost generates them, owned |

pub mod client;
pub mod code;
pub mod frame;
pub mod limits;
pub mod memberships;
pub mod message;
pub mod resume;
pub mod server;
mod wire;

/// The messages as `prost` generates them from the `.proto` files: owned, and the oracle for
/// [`message`]'s borrowed ones in the tests.
#[expect(missing_docs, reason = "the .proto files document these")]
pub mod proto {
    /// Frames: `tidegate.v1`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/tidegate.v1.rs"));
    }
    /// The envelope between an app and its backend: `tidegate.business.v1`.
    pub mod business {
        include!(concat!(env!("OUT_DIR"), "/tidegate.business.v1.rs"));
    }
    /// Requests to the demo backend: `tidegate.demo.v1`.
    pub mod demo {
        include!(concat!(env!("OUT_DIR"), "/tidegate.demo.v1.rs"));
    }
}

pub use code::Code;
pub use frame::{FrameError, Reassembler};
pub use message::{MessageError, Request, Response, WireError};
