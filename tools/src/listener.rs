//! Whether the process that `--pid` names is the one that listens on an address. `tide doctor` and `tide bench` both demand
//! it: otherwise they would judge or measure one process and show the figures as another's.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use tidegate_machine::files::Files;
use tidegate_machine::listeners;

/// Ensures that a process listens at all. Returns its addresses.
///
/// # Errors
/// It does not, or where it listens can't be read.
pub(crate) fn demand_any_listener(files: &Files, pid: u32) -> Result<Vec<SocketAddr>> {
    let listens = listeners::of_process(files, pid)
        .with_context(|| format!("where process {pid} listens can't be read"))?;
    ensure!(!listens.is_empty(), "process {pid} is not a gateway: it listens on no TCP port");
    Ok(listens)
}

/// Ensures that a process listens on an address. `hint` says which option names another process or address.
///
/// # Errors
/// It does not, or where it listens can't be read.
pub(crate) fn demand_listener(
    files: &Files,
    pid: u32,
    address: SocketAddr,
    hint: &str,
) -> Result<()> {
    let listens = demand_any_listener(files, pid)?;
    if listens.iter().any(|listener| listeners::serves(*listener, address)) {
        return Ok(());
    }
    let listens: Vec<_> = listens.iter().map(ToString::to_string).collect();
    let other = match listeners::process_at(files, address) {
        Ok(Some(other)) if other != pid => format!(" Process {other} listens on {address}."),
        _ => String::new(),
    };
    bail!(
        "process {pid} does not listen on {address}, but on {}.{other} {hint}",
        listens.join(", ")
    )
}
