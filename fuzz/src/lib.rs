//! What the fuzz targets share: the same oracle as the protocol's own properties.

#[path = "../../protocol/tests/oracle/mod.rs"]
pub mod oracle;
