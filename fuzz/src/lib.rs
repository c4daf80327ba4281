//! What the fuzz targets share: the oracle of the protocol's property tests.

#[path = "../../protocol/tests/oracle/mod.rs"]
pub mod oracle;
