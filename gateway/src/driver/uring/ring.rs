//! One ring: the operations that the driver needs, as safe functions.
//!
//! A [`Ring`] keeps what the kernel may still read or write (buffers, the bytes of sends, addresses) until
//! the completion of the operation has been seen. It does not know what an operation is for: it returns
//! the [`Token`] that came with it. All unsafe code of the driver is here and in [`buffers`](super::buffers).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use bytes::Bytes;
use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::{SockAddr, SockAddrStorage};
use tidegate_machine::io_uring::builder;

use super::buffers::Buffers;
use super::token::Token;
use crate::driver::{ConnId, LISTENERS_MAX};

/// Operations that are submitted in one system call at most. 128 to 256 measured best.
const SUBMISSIONS: u32 = 256;

/// Completions that the ring holds. The kernel keeps more than that in a list, which costs an allocation
/// each.
const COMPLETIONS: u32 = 4096;

/// Accepts in flight at most: one system call accepts up to this number of new connections.
pub(super) const ACCEPTS_MAX: u16 = 33;

const _: () = assert!(ACCEPTS_MAX as usize >= LISTENERS_MAX, "one for each listening socket");

/// How often in a row the kernel may complete nothing though it had work: it does some twenty pieces of work
/// at a time, and not every piece completes an operation.
const FRUITLESS_MAX: u8 = 3;

/// How long the kernel may take to cancel what is in flight when a ring ends.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// An unconfirmed send: see [`Ring::send_now`].
#[derive(Debug)]
pub(super) struct SentNow {
    /// `None`: it has failed, and what it has left goes out in steps.
    pub(super) conn: Option<ConnId>,
    bytes: Bytes,
}

/// Unconfirmed sends that have not failed, unless one of the completions that were there at the time reports it.
#[derive(Clone, Copy, Debug)]
struct Confirmation {
    /// The sends before this number.
    sends: u64,
    /// Completions that were there and are not taken yet.
    completions_left: usize,
}

/// The result of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) token: Token,
    /// As the system call would return it: not negative, or a negated `errno`.
    pub(super) result: i32,
    /// The buffer that bytes were received into.
    pub(super) buffer: Option<u16>,
    /// The operation continues: more completions follow.
    pub(super) more: bool,
}

/// A ring, with its own table of direct descriptors and its own buffers.
pub(super) struct Ring {
    /// The first field, so that it is dropped before the memory that the kernel may write to.
    uring: IoUring,
    pub(super) buffers: Buffers,
    /// The kernel writes the peers' addresses here, one for each accept in flight.
    addresses: Box<[Address]>,
    /// Unconfirmed sends, in order.
    sends_now: VecDeque<SentNow>,
    /// The number of the first of them.
    first_send_now: u64,
    /// The kernel has seen all before this number.
    submitted_sends_now: u64,
    /// What confirms the sends that were submitted when this was set.
    confirmation: Option<Confirmation>,
    /// Steps of sends in flight.
    sends: HashMap<u64, Bytes>,
    /// It signals an eventfd when it gets something to do.
    signals: bool,
    /// How often in a row the kernel had set the flag that it has work, and nothing completed. Another
    /// processor may set it when this one has done the work already, and it then stays set. After
    /// [`FRUITLESS_MAX`] times the flag is ignored until the ring signals.
    fruitless: u8,
    /// Direct descriptors that the table holds.
    files_max: u32,
    /// Direct descriptors in use, or reserved by an accept in flight: at most `files_max`.
    pub(super) files: u32,
}

#[repr(C)]
struct Address {
    storage: SockAddrStorage,
    bytes: libc::socklen_t,
}

impl Ring {
    /// A ring with `files_max` direct descriptors and `buffers` buffers. It does nothing before a thread
    /// [enables](Self::enable) it. From then on only that thread may use it.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub(super) fn new(files_max: u32, buffers: u16) -> io::Result<Self> {
        let uring = builder().setup_cqsize(COMPLETIONS).build(SUBMISSIONS)?;
        let buffers = Buffers::new(buffers);
        buffers.register(&uring.submitter())?;
        uring.submitter().register_files_sparse(files_max)?;
        let address = || Address { storage: SockAddrStorage::zeroed(), bytes: 0 };
        Ok(Self {
            uring,
            buffers,
            addresses: (0..ACCEPTS_MAX).map(|_| address()).collect(),
            sends_now: VecDeque::new(),
            first_send_now: 0,
            submitted_sends_now: 0,
            confirmation: None,
            sends: HashMap::new(),
            signals: false,
            fruitless: 0,
            files_max,
            files: 0,
        })
    }

    /// Starts it, for this thread.
    pub(super) fn enable(&self) -> io::Result<()> {
        self.uring.submitter().register_enable_rings()
    }

    /// Makes it signal an eventfd whenever something completes.
    pub(super) fn signal(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.signals = true;
        self.uring.submitter().register_eventfd(eventfd.as_raw_fd())
    }

    /// Completes [`Token::Wake`] each time an eventfd is written to.
    pub(super) fn watch_wakeups(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fd(eventfd.as_raw_fd()), libc::POLLIN as u32).multi(true);
        self.push(poll.build(), Token::Wake)
    }

    /// How many more direct descriptors the table holds.
    pub(super) fn free_files(&self) -> u32 {
        self.files_max - self.files
    }

    /// Accepts one connection into a free direct descriptor: there must be one. It stays reserved until the
    /// connection is [closed](Self::close), or the [accept has failed](Self::accept_failed).
    pub(super) fn accept(&mut self, listener: BorrowedFd<'_>, address: u16) -> io::Result<()> {
        debug_assert!(self.files < self.files_max, "a connection would be lost");
        self.files += 1;
        let Address { storage, bytes } = &mut self.addresses[usize::from(address)];
        *bytes = storage.size_of();
        let storage = (&raw mut *storage).cast();
        let accept = opcode::Accept::new(Fd(listener.as_raw_fd()), storage, &raw mut *bytes)
            .file_index(Some(DestinationSlot::auto_target()));
        self.push(accept.build(), Token::Accept(address))
    }

    /// An accept has failed: the descriptor that it reserved is free.
    pub(super) fn accept_failed(&mut self) {
        self.files -= 1;
    }

    /// Where the connection comes from whose accept used an address, once.
    pub(super) fn take_peer(&mut self, address: u16) -> Option<SocketAddr> {
        let Address { storage, bytes } = &mut self.addresses[usize::from(address)];
        let storage = mem::replace(storage, SockAddrStorage::zeroed());
        let bytes = (*bytes).min(storage.size_of());
        // SAFETY: the kernel has filled the storage as accept(2) does, and set its length. Where the accept
        // failed, all of it is zero, which is an address of no family.
        unsafe { SockAddr::new(storage, bytes) }.as_socket()
    }

    /// Receives until it is cancelled, buffers run out, or the connection ends.
    pub(super) fn receive(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        let receive = opcode::RecvMulti::new(Fixed(file), 0);
        self.push(receive.build(), Token::Receive(conn))
    }

    /// Completes on each change of a connection's end (an error, a hang-up), until it is cancelled.
    pub(super) fn watch(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        // Errors and hang-ups complete it unasked: poll(2). So does POLLRDHUP, which may be set already: a
        // watch for one event would end with that, and miss the reset that follows.
        let watch = opcode::PollAdd::new(Fixed(file), 0).multi(true);
        self.push(watch.build(), Token::Watch(conn))
    }

    /// Asks for the error of a dead connection: a send of no bytes fails with it.
    pub(super) fn ask_error(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let send = opcode::Send::new(Fixed(file), std::ptr::null(), 0).flags(flags);
        self.push(send.build(), Token::Error(conn))
    }

    /// Sends what the socket takes now. Only a failure completes, a short send among them. The send is
    /// *unconfirmed* until it is known that it has not failed, and its bytes are kept until then.
    #[inline]
    pub(super) fn send_now(&mut self, file: u32, conn: ConnId, bytes: Bytes) -> io::Result<()> {
        let number = self.first_send_now + self.sends_now.len() as u64;
        // With MSG_WAITALL a short send counts as a failure, so it completes. Without it, it would not.
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let send = opcode::Send::new(Fixed(file), bytes.as_ptr(), length(&bytes)).flags(flags);
        let entry = send.build().flags(squeue::Flags::SKIP_SUCCESS);
        // Kept only now: a push may submit the operations before it, and this one must not count among them.
        self.push(entry, Token::SendNow(number))?;
        self.sends_now.push_back(SentNow { conn: Some(conn), bytes });
        Ok(())
    }

    /// Takes an unconfirmed send that has failed. It will not be confirmed.
    pub(super) fn take_failed_send(&mut self, number: u64) -> Option<(ConnId, Bytes)> {
        let index = usize::try_from(number.checked_sub(self.first_send_now)?).ok()?;
        let sent = self.sends_now.get_mut(index)?;
        Some((sent.conn.take()?, sent.bytes.clone()))
    }

    /// The kernel has tried all sends before this number. Their failures are among the completions, or were.
    #[inline]
    pub(super) fn submitted_sends(&mut self) -> u64 {
        // The completions that the kernel keeps in its list are not seen yet.
        let overflow = self.uring.submission().cq_overflow();
        if overflow { self.first_send_now } else { self.submitted_sends_now }
    }

    /// Takes the next send before number `until`, which is confirmed: see [`Self::take_completions`].
    #[inline]
    pub(super) fn confirm_send(&mut self, until: u64) -> Option<SentNow> {
        if self.first_send_now >= until {
            return None;
        }
        let sent = self.sends_now.pop_front()?;
        self.first_send_now += 1;
        Some(sent)
    }

    /// Sends what the socket takes now, and completes with how much. At most one at a time on a connection.
    pub(super) fn send(&mut self, file: u32, conn: ConnId, bytes: Bytes) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let send = opcode::Send::new(Fixed(file), bytes.as_ptr(), length(&bytes)).flags(flags);
        let token = Token::Send(conn);
        let other = self.sends.insert(token.to_bits(), bytes);
        debug_assert!(other.is_none(), "one send at a time");
        self.push(send.build(), token)
    }

    /// Completes when the socket gets writable, or the connection is dead, until it is cancelled. The peer's
    /// end completes it too, once: see [`Self::watch`].
    pub(super) fn watch_writable(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        let watch = opcode::PollAdd::new(Fixed(file), libc::POLLOUT as u32).multi(true);
        self.push(watch.build(), Token::Writable(conn))
    }

    /// The bytes of a step that has completed.
    pub(super) fn take_send(&mut self, conn: ConnId) -> Option<Bytes> {
        self.sends.remove(&Token::Send(conn).to_bits())
    }

    /// Shuts down the sending side.
    pub(super) fn shutdown(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        let shutdown = opcode::Shutdown::new(Fixed(file), libc::SHUT_WR);
        self.push(shutdown.build(), Token::Shutdown(conn))
    }

    /// Cancels an operation. It completes with `ECANCELED`, unless it completes otherwise before.
    pub(super) fn cancel(&mut self, token: Token) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(token.to_bits()).build();
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS), Token::Nothing)
    }

    /// Frees a direct descriptor. Operations in flight continue, except a shutdown, which must have completed.
    pub(super) fn close(&mut self, file: u32) -> io::Result<()> {
        self.files -= 1;
        let entry = opcode::Close::new(Fixed(file)).build();
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS), Token::Nothing)
    }

    #[inline]
    fn push(&mut self, entry: squeue::Entry, token: Token) -> io::Result<()> {
        if self.uring.submission().is_full() {
            self.submit()?;
        }
        let entry = entry.user_data(token.to_bits());
        // SAFETY: what the entry points to outlives the operation. Addresses and buffers are the ring's. The
        // bytes of sends are kept in `sends_now` and `sends` until their completion has been seen.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("the kernel took nothing from a full submission queue"))
    }

    /// Submits what was pushed, and lets the kernel complete what it can.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.enter(0, None)
    }

    /// The same, and waits for a completion, at most for `wait`.
    pub(super) fn submit_and_wait(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.enter(1, wait)
    }

    /// The same, and waits for this number of completions, at most for `wait`.
    pub(super) fn submit_and_gather(
        &mut self,
        completions: usize,
        wait: Duration,
    ) -> io::Result<()> {
        self.enter(completions, Some(wait))
    }

    fn enter(&mut self, want: usize, wait: Option<Duration>) -> io::Result<()> {
        let timespec = wait.map(Timespec::from);
        let submitter = self.uring.submitter();
        let entered = match &timespec {
            Some(timespec) => {
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(timespec))
            }
            None => submitter.submit_and_wait(want),
        };
        match entered.as_ref().map_err(io::Error::raw_os_error) {
            // The time is up, a signal came, or completions have to be taken first. The operations are
            // submitted.
            Ok(_) | Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(_) => return entered.map(drop),
        }
        if self.uring.submission().is_empty() {
            self.submitted_sends_now = self.first_send_now + self.sends_now.len() as u64;
        }
        if self.signals && !self.has_completions() && self.has_kernel_work() {
            self.fruitless = self.fruitless.saturating_add(1);
        } else {
            self.fruitless = 0;
        }
        Ok(())
    }

    #[inline]
    pub(super) fn has_submissions(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// How many operations there are to submit.
    #[cfg(test)]
    pub(super) fn submissions(&mut self) -> usize {
        self.uring.submission().len()
    }

    /// Whether there are completions to take.
    #[inline]
    pub(super) fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Whether there may be completions to take after a [`Self::submit`].
    #[inline]
    pub(super) fn may_complete(&mut self) -> bool {
        self.fruitless < FRUITLESS_MAX && self.has_kernel_work()
    }

    /// A ring has signalled: perhaps this one.
    pub(super) fn signalled(&mut self) {
        self.fruitless = 0;
    }

    fn has_kernel_work(&mut self) -> bool {
        let submissions = self.uring.submission();
        submissions.taskrun() || submissions.cq_overflow()
    }

    /// Moves the completions that are there to `into`, `completions_max` at most. All sends before the number
    /// that it returns are confirmed by the completions that were taken by now, these included.
    pub(super) fn take_completions(
        &mut self,
        into: &mut Vec<Completion>,
        completions_max: usize,
    ) -> Option<u64> {
        let confirmation = self.confirmation.take();
        let Confirmation { sends, completions_left } = confirmation.unwrap_or_else(|| {
            let sends = self.submitted_sends();
            Confirmation { sends, completions_left: self.uring.completion().len() }
        });
        let completion = |entry: cqueue::Entry| Completion {
            token: Token::from_bits(entry.user_data()),
            result: entry.result(),
            buffer: cqueue::buffer_select(entry.flags()),
            more: cqueue::more(entry.flags()),
        };
        into.extend(self.uring.completion().map(completion).take(completions_max));
        let completions_left = completions_left.saturating_sub(into.len());
        if completions_left > 0 {
            self.confirmation = Some(Confirmation { sends, completions_left });
            return None;
        }
        Some(sends)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let timeout = Timespec::from(CANCEL_TIMEOUT);
        let all = CancelBuilder::any().all();
        let cancelled = self.uring.submitter().register_sync_cancel(Some(timeout), all);
        // ENOENT: nothing was in flight.
        if cancelled.is_err_and(|error| error.raw_os_error() != Some(libc::ENOENT)) {
            // The kernel may still read and write this memory, so it is leaked.
            mem::forget(mem::replace(&mut self.buffers, Buffers::new(1)));
            mem::forget(mem::take(&mut self.addresses));
            mem::forget(mem::take(&mut self.sends));
            mem::forget(mem::take(&mut self.sends_now));
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The length of a send. A longer one is cut: it comes short, and the rest follows.
fn length(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX >> 1)
}
