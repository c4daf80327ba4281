//! The configuration: as typed -> checked.

mod checked;

pub use checked::*;
