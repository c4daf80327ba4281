//! All rings of a driver, and the wait on them.
//!
//! A ring's table of direct descriptors has at most as many entries as the process may open files, but a
//! driver may have several rings: that is how a million connections fit under a small limit. Each ring costs
//! memory and time, so one is added only when the others have no free entry. The driver waits on the first
//! ring. The others signal an eventfd that the first one watches.
//!
//! [`Rings`] knows nothing of connections. The other modules of the driver ask it for operations, by the
//! number of a ring.

use std::io;
use std::mem;
use std::ops::{Index, IndexMut};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use tidegate_backend::batch::Wake;

use super::ring::Ring;
use tidegate_machine::io_uring::on_helper_thread;

/// Buffers of a ring. With more of them nothing was faster; with too few, receives end for want of one and
/// have to be armed again.
const BUFFERS: u16 = 512;

/// Buffers of a ring that is one of many.
const BUFFERS_OF_MANY: u16 = 256;

/// The kernel's own limit on a ring's direct descriptors.
const FILES_MAX: u32 = 1 << 20;

/// How large a driver may grow.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Connections, of this driver alone: at most 2^26. It sets the size of the rings. The sink decides how
    /// many connections are accepted.
    pub connections: usize,
    /// Direct descriptors of one ring: at most RLIMIT_NOFILE.
    pub files_each: u32,
}

/// What ends a wait that lets completions gather.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathering {
    /// This number of completions.
    pub(super) completions: usize,
    /// Or this time.
    pub(super) time_max: Duration,
}

/// All rings of a driver.
#[derive(Debug)]
pub(super) struct Rings {
    /// Never empty.
    rings: Vec<Ring>,
    /// The first ring belongs to this thread.
    enabled: bool,
    /// Direct descriptors of each ring.
    files_each: u32,
    buffers_each: u16,
    wakeup: Arc<Wakeup>,
    /// The ring that has taken in the last connection.
    last_used: usize,
    /// What kept an operation from being submitted: the next poll fails with it.
    failure: Option<io::Error>,
}

#[derive(Debug)]
struct Wakeup(OwnedFd);

impl Wake for Wakeup {
    fn wake(&self) {
        // The only failure is a full counter, which means that it is awake already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl Rings {
    /// One ring. The thread that [enables](Self::enable) it is the one that uses it.
    ///
    /// # Errors
    /// When the kernel gives no ring, or no thread to make it.
    pub(super) fn new(capacity: Capacity) -> io::Result<Self> {
        let connections = u32::try_from(capacity.connections).unwrap_or(u32::MAX);
        let files_each = connections.min(capacity.files_each).clamp(1, FILES_MAX);
        let buffers_each = if files_each < connections { BUFFERS_OF_MANY } else { BUFFERS };
        let wakeup = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let first = on_helper_thread(|| Ring::new(files_each, buffers_each))
            .map_err(|error| no_thread(&error))??;
        Ok(Self {
            rings: vec![first],
            enabled: false,
            files_each,
            buffers_each,
            wakeup: Arc::new(Wakeup(wakeup)),
            last_used: 0,
            failure: None,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.rings.len()
    }

    pub(super) fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wakeup) as Arc<dyn Wake>
    }

    /// Makes this thread the one that uses the first ring, once.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        if !mem::replace(&mut self.enabled, true) {
            self.rings[0].enable()?;
            self.rings[0].watch_wakeups(self.wakeup.0.as_fd())?;
        }
        Ok(())
    }

    /// Adds a ring, for more connections than the others have free descriptors for. Says its number. This
    /// thread makes it itself: the kernel interrupts it at the end of the rings that it uses in any case.
    pub(super) fn add(&mut self) -> io::Result<u16> {
        let number = u16::try_from(self.rings.len()).map_err(io::Error::other)?;
        let mut ring = Ring::new(self.files_each, self.buffers_each)?;
        ring.enable()?;
        ring.signal(self.wakeup.0.as_fd())?;
        self.rings.push(ring);
        self.last_used = usize::from(number);
        Ok(number)
    }

    /// A ring that can take a connection in: the one that did so last for as long as it can, then the
    /// emptiest.
    pub(super) fn with_free_file(&mut self) -> Option<u16> {
        if self.rings[self.last_used].free_files() == 0 {
            let free = self.rings.iter().map(Ring::free_files).enumerate();
            let (ring, _) = free.max_by_key(|(_, free)| *free).filter(|(_, free)| *free > 0)?;
            self.last_used = ring;
        }
        u16::try_from(self.last_used).ok()
    }

    /// Asks a ring for an operation. If it can't be asked, the driver's next poll fails.
    #[inline]
    pub(super) fn ask(&mut self, ring: u16, what: impl FnOnce(&mut Ring) -> io::Result<()>) {
        if let Err(error) = what(&mut self.rings[usize::from(ring)]) {
            self.failure.get_or_insert(error);
        }
    }

    /// What kept an operation from being submitted.
    pub(super) fn take_failure(&mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Submits what was asked for. Waits at most so long, if there is nothing to do: neither here nor for the
    /// caller, who says whether it is `busy`. Such a wait may let completions gather first. Returns whether it did.
    pub(super) fn submit_and_wait(
        &mut self,
        mut busy: bool,
        gathering: Option<Gathering>,
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        busy = busy || timeout == Some(Duration::ZERO) || self.failure.is_some();
        for ring in &mut self.rings[1..] {
            if ring.has_submissions() || ring.may_complete() {
                ring.submit()?;
            }
            busy = busy || ring.has_completions() || ring.may_complete();
        }
        // What happens in the others from now on ends this wait: each signals when it gets something to do.
        if !(busy || self.rings[0].has_completions()) {
            let first = &mut self.rings[0];
            if let Some(Gathering { completions, time_max }) = gathering {
                let time = timeout.map_or(time_max, |timeout| timeout.min(time_max));
                first.submit_and_gather(completions, time)?;
            }
            if !first.has_completions() {
                first.submit_and_wait(timeout)?;
            }
            return Ok(gathering.is_some());
        }
        let first = &mut self.rings[0];
        if first.has_submissions() || first.may_complete() {
            first.submit()?;
        }
        Ok(false)
    }

    /// Submits what was asked for to each ring that was asked.
    pub(super) fn submit_all(&mut self) {
        for ring in &mut self.rings {
            if ring.has_submissions()
                && let Err(error) = ring.submit()
            {
                self.failure.get_or_insert(error);
            }
        }
    }

    /// Lets each ring complete what it can, and waits for the first one at most so long.
    pub(super) fn let_complete(&mut self, wait: Duration) -> io::Result<()> {
        for ring in &mut self.rings[1..] {
            ring.submit()?;
        }
        self.rings[0].submit_and_wait(Some(wait))
    }

    /// A ring or another thread has written to the eventfd. `watched`: the first ring still
    /// watches it.
    pub(super) fn on_wakeup(&mut self, watched: bool) {
        self.rings.iter_mut().for_each(Ring::signalled);
        if !watched {
            let wakeup = Arc::clone(&self.wakeup);
            self.ask(0, |ring| ring.watch_wakeups(wakeup.0.as_fd()));
        }
    }
}

impl Index<usize> for Rings {
    type Output = Ring;

    #[inline]
    fn index(&self, ring: usize) -> &Ring {
        &self.rings[ring]
    }
}

impl IndexMut<usize> for Rings {
    #[inline]
    fn index_mut(&mut self, ring: usize) -> &mut Ring {
        &mut self.rings[ring]
    }
}

fn no_thread(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("no thread can be started to make a ring: {error}"))
}
