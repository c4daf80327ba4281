//! A cluster of three masters, and slots that move between them.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::{Redis, RedisSetup};
use crate::until;

/// The slots of a cluster.
const SLOTS: u16 = 16_384;

/// Three masters, and as many replicas if they are asked for.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes. The first three begin as masters.
    pub nodes: Vec<Redis>,
}

impl Cluster {
    /// Starts three masters.
    #[must_use]
    pub fn start() -> Self {
        Self::start_each(&RedisSetup::default())
    }

    /// Starts three masters, each with this setup.
    #[must_use]
    pub fn start_each(setup: &RedisSetup) -> Self {
        Self::create(3, 0, setup)
    }

    /// Starts three masters with a replica each.
    #[must_use]
    pub fn with_replicas() -> Self {
        Self::create(6, 1, &RedisSetup::default())
    }

    fn create(count: usize, replicas: u8, setup: &RedisSetup) -> Self {
        let setup =
            || setup.clone().line("cluster-node-timeout 1000").line("repl-diskless-sync-delay 0");
        let mut nodes: Vec<Redis> = (0..count).map(|_| setup().launch_node()).collect();
        nodes.iter_mut().for_each(Redis::wait_for_answer);
        let cluster = Self { nodes };
        if replicas == 0 {
            cluster.form();
        } else {
            cluster.form_with_replicas(replicas);
        }
        cluster.wait_until_whole();
        cluster
    }

    /// Makes a cluster of the nodes, which are all masters. It takes the two seconds that a node waits before it accepts writes.
    fn form(&self) {
        let count = self.nodes.len();
        let first_of = |index: usize| index * usize::from(SLOTS) / count;
        for (index, node) in self.nodes.iter().enumerate() {
            let (first, last) =
                (first_of(index).to_string(), (first_of(index + 1) - 1).to_string());
            node.ok(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            node.ok(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for node in &self.nodes[1..] {
            let (port, bus) = (node.port().to_string(), node.bus_port().to_string());
            self.nodes[0].ok(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
    }

    fn form_with_replicas(&self, replicas: u8) {
        let address = |node: &Redis| format!("127.0.0.1:{}@{}", node.port(), node.bus_port());
        let output = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(self.nodes.iter().map(address))
            .args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// Waits until each of the nodes knows all others and has all slots covered.
    pub(super) fn wait_until_whole(&self) {
        let count = self.nodes.len();
        let is_whole = |node: &Redis| {
            let info = node.cli(&["CLUSTER", "INFO"]);
            let nodes = node.cli(&["CLUSTER", "NODES"]);
            let knows_all = nodes.lines().count() == count && !nodes.contains("handshake");
            info.contains("cluster_state:ok") && knows_all
        };
        until("the cluster is whole", || self.nodes.iter().all(is_whole).then_some(()));
        for replica in &self.nodes[3..] {
            until("the replica is linked", || {
                (replica.info("master_link_status")? == "up").then_some(())
            });
        }
    }

    /// The URLs of all nodes.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// Loads a function library on each master.
    pub fn load_library(&self, text: &str) {
        self.nodes.iter().filter(|node| node.is_master()).for_each(|node| node.load_library(text));
    }

    /// The slot of a key.
    #[must_use]
    pub fn slot_of(&self, key: &str) -> u16 {
        self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key]).parse().unwrap()
    }

    /// The index of the master that serves a slot.
    #[must_use]
    pub fn owner_of(&self, slot: u16) -> usize {
        until("the slot has an owner", || self.nodes.iter().position(|node| serves(node, slot)))
    }

    /// Begins to move a slot: from now on both nodes know of it, and no key has moved.
    pub fn begin_move(&self, slot: u16, to: usize) {
        let from = self.owner_of(slot);
        let slot = slot.to_string();
        let setslot = |node: usize, state: &str, other: usize| {
            self.nodes[node].ok(&["CLUSTER", "SETSLOT", &slot, state, &self.id_of(other)]);
        };
        setslot(to, "IMPORTING", from);
        setslot(from, "MIGRATING", to);
    }

    /// Moves up to `count` keys of a slot. Returns their names.
    pub fn move_keys(&self, slot: u16, to: usize, count: usize) -> Vec<String> {
        let from = &self.nodes[self.owner_of(slot)];
        let listed = from.cli(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), &count.to_string()]);
        let keys: Vec<String> =
            listed.lines().filter(|key| !key.is_empty()).map(str::to_owned).collect();
        for key in &keys {
            self.move_key(from, key, to);
        }
        keys
    }

    fn move_key(&self, from: &Redis, key: &str, to: usize) {
        let port = self.nodes[to].port().to_string();
        let answer = from.cli(&["MIGRATE", "127.0.0.1", &port, key, "0", "10000"]);
        // A key may end in between.
        assert!(answer == "OK" || answer == "NOKEY", "{key}: {answer}");
    }

    /// Moves one key of a slot that is being moved.
    pub fn move_one_key(&self, key: &str, to: usize) {
        let from = &self.nodes[self.owner_of(self.slot_of(key))];
        self.move_key(from, key, to);
    }

    /// Ends the move of a slot whose keys have moved: all masters know the new owner.
    pub fn finish_move(&self, slot: u16, to: usize) {
        let (slot_text, id) = (slot.to_string(), self.id_of(to));
        // The new owner first, so that the slot is never without one.
        self.nodes[to].ok(&["CLUSTER", "SETSLOT", &slot_text, "NODE", &id]);
        for node in self.nodes.iter().filter(|node| node.is_master()) {
            node.ok(&["CLUSTER", "SETSLOT", &slot_text, "NODE", &id]);
        }
        self.wait_until_agreed();
    }

    /// Waits until all masters have heard of all moves. Faster moves may give two nodes the same epoch, and then they never
    /// agree on which of them has the slot.
    fn wait_until_agreed(&self) {
        let masters: Vec<_> = self.nodes.iter().filter(|node| node.is_master()).collect();
        until("the masters agree", || {
            let mut views = masters.iter().map(|node| owners(&node.cli(&["CLUSTER", "NODES"])));
            let first = views.next()?;
            views.all(|view| view == first).then_some(())
        });
    }

    /// Moves a slot with its keys, as `redis-cli --cluster reshard` does.
    pub fn move_slot(&self, slot: u16, to: usize) {
        self.begin_move(slot, to);
        while !self.move_keys(slot, to, 10).is_empty() {}
        self.finish_move(slot, to);
    }

    fn id_of(&self, node: usize) -> String {
        self.nodes[node].cli(&["CLUSTER", "MYID"])
    }
}

/// The nodes of an answer to CLUSTER NODES: of each the id, the epoch and the slots.
fn owners(nodes: &str) -> BTreeSet<String> {
    let owner = |line: &str| {
        let columns: Vec<_> = line.split(' ').collect();
        let (id, epoch) = (columns.first()?, columns.get(6)?);
        // Only the two nodes of a move show it, in brackets.
        let slots = columns.get(8..)?.iter().filter(|range| !range.starts_with('['));
        Some(slots.fold(format!("{id} {epoch}"), |line, range| format!("{line} {range}")))
    };
    nodes.lines().filter_map(owner).collect()
}

/// Whether the node is the master that serves a slot.
fn serves(node: &Redis, slot: u16) -> bool {
    let nodes = node.cli(&["CLUSTER", "NODES"]);
    let Some(own) = nodes.lines().find(|line| line.contains("myself,master")) else { return false };
    // Ranges come after eight other columns. A range that is being moved is in brackets.
    own.split(' ').skip(8).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let bounds = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
        bounds.is_some_and(|(first, last)| (first..=last).contains(&slot))
    })
}
