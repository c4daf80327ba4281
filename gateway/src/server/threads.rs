//! The shards' threads: each has a driver, and reports how it ended.

use std::io;
use std::net::TcpListener;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Sender};
use nix::sched::{CloneFlags, unshare};
use tidegate_backend::RoomId;
use tidegate_backend::batch::Wake;
use tidegate_machine::{capacity, descriptors};

use super::StartError;
use crate::config::{Config, DriverKind};
use crate::driver::Driver;
use crate::driver::epoll::Epoll;
use crate::driver::uring::{Capacity, Uring};
use crate::parts::Parts;
use crate::shard::mailbox::Message;
use crate::shard::rooms;
use crate::telemetry::panics::text_of;
use crate::wire::{self, Wired};

/// How a shard ended: its number, and its error.
pub(super) type Report = (u16, Result<(), String>);

/// Starts a thread for each shard.
///
/// # Errors
/// When the system refuses a driver or a thread. No thread runs then.
pub(super) fn start_shards(
    listeners: Vec<Vec<TcpListener>>,
    wires: &wire::Settings,
    parts: &Parts,
    report: &Sender<Report>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let settings = parts.shared.settings();
    let config = &settings.config;
    if let Some(reason) = &config.driver_refusal {
        tracing::warn!("epoll is used, since io_uring can't be: {reason}");
    }
    // All drivers are made before the first thread runs, since making one can fail.
    match config.driver {
        DriverKind::Epoll => {
            let new = |listeners| Ok(Epoll::new(listeners)?.coalescing(config.coalesce));
            let drivers = listeners.into_iter().map(new).collect::<io::Result<Vec<_>>>()?;
            let wakers = drivers.iter().map(Epoll::waker).collect();
            spawn(wired(drivers, wires), wakers, Descriptors::of(config), parts, report)
        }
        DriverKind::Uring => {
            let capacity = ring_capacity(config);
            let new = |listeners| Ok(Uring::new(listeners, capacity)?.coalescing(config.coalesce));
            let drivers = listeners.into_iter().map(new).collect::<io::Result<Vec<_>>>()?;
            let wakers = drivers.iter().map(Uring::waker).collect();
            spawn(wired(drivers, wires), wakers, Descriptors::Shared, parts, report)
        }
    }
}

/// Drivers whose connections have the wires of their listeners.
fn wired<D: Driver>(drivers: Vec<D>, wires: &wire::Settings) -> Vec<Wired<D>> {
    drivers.into_iter().map(|driver| Wired::new(driver, wires.clone())).collect()
}

/// Which table of descriptors a shard's thread uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Descriptors {
    /// The process's.
    Shared,
    /// Its own, a copy of the process's. The limit applies to each table (unshare(2), CLONE_FILES).
    Own,
}

impl Descriptors {
    /// A table for each shard, where the configuration allows more connections than one table has room for.
    fn of(config: &Config) -> Self {
        let shards = u64::from(config.shards);
        let one_table = capacity::connections_per_table(descriptors::limit(), shards);
        let needs_more = config.limits.connections_max as u64 > one_table;
        if needs_more { Self::Own } else { Self::Shared }
    }
}

/// Each shard has room for all connections, since SO_REUSEPORT spreads them by hash, however unevenly.
fn ring_capacity(config: &Config) -> Capacity {
    let limit = descriptors::limit().unwrap_or(u64::MAX);
    Capacity {
        connections: config.limits.connections_max,
        files_each: u32::try_from(limit).unwrap_or(u32::MAX),
    }
}

fn spawn<D: Driver + Send + 'static>(
    drivers: Vec<D>,
    wakers: Vec<Arc<dyn Wake>>,
    tables: Descriptors,
    parts: &Parts,
    report: &Sender<Report>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    for (address, waker) in parts.shared.addresses.iter().zip(wakers) {
        address.mailbox().set_waker(waker);
    }
    // The home of everybody's room comes first: it passes the shared log on before another shard accepts a client.
    let home = rooms::home(&RoomId::everybody(), parts.shared.settings().config.shards);
    let mut drivers: Vec<_> = (0_u16..).zip(drivers).collect();
    drivers.sort_by_key(|(id, _)| *id != home);
    let mut threads = Vec::new();
    for (id, mut driver) in drivers {
        let (parts_of_shard, report) = (parts.clone(), report.clone());
        let (begins, has_begun) = channel::bounded::<()>(0);
        let run = move || {
            let run = || {
                if tables == Descriptors::Own {
                    unshare(CloneFlags::CLONE_FILES)
                        .map_err(|error| format!("it gets no table of descriptors: {error}"))?;
                }
                let mut shard = parts_of_shard.shard(id);
                shard.begin(&mut driver);
                drop(begins);
                let outcome = shard.run(&mut driver);
                outcome.map_err(|error| error.to_string())
            };
            let outcome = panic::catch_unwind(AssertUnwindSafe(run))
                .unwrap_or_else(|payload| Err(format!("it panicked: {}", text_of(&*payload))));
            // The receiver is gone when the server itself was dropped.
            drop(report.send((id, outcome)));
        };
        match thread::Builder::new().name(format!("shard-{id}")).spawn(run) {
            Ok(thread) => {
                threads.push(thread);
                if id == home {
                    // It ends when the shard has begun, or has failed.
                    let _ = has_begun.recv();
                }
            }
            Err(error) => {
                // The threads that run already must not continue without it.
                parts.hub.set_stopped();
                parts.hub.tell_all(|| Message::Stop);
                threads.into_iter().for_each(|thread| drop(thread.join()));
                return Err(error.into());
            }
        }
    }
    Ok(threads)
}
