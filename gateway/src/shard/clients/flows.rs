//! What the address of each connection's client is counted as where signatures wait to be checked.
//!
//! The table is beside the connections, 4 bytes for each, and is empty where no signature waits.

use crate::auth::Flow;

/// By slot. See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Flows(Vec<Flow>);

impl Flows {
    /// The connection in the slot has this one.
    pub(super) fn set(&mut self, slot: u32, flow: Flow) {
        let index = slot as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, Flow::default());
        }
        self.0[index] = flow;
    }

    /// That of the connection in the slot.
    pub(super) fn get(&self, slot: u32) -> Flow {
        self.0.get(slot as usize).copied().unwrap_or_default()
    }
}
