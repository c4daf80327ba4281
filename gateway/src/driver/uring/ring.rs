//! One ring: the operations that the driver needs, as safe functions.
//!
//! A ring keeps what the kernel may still read or write (buffers, the bytes of sends, the places for
//! addresses) until the operation's completion has been seen. All unsafe code of the driver is here and
//! in [`buffers`](super::buffers).

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
use crate::driver::ConnId;

/// Operations that are submitted in one system call at most. 128 to 256 measured best.
const SUBMISSIONS: u32 = 256;

/// Completions that the ring holds; the kernel keeps what is beyond, at a price.
const COMPLETIONS: u32 = 4096;

/// Connections that are being accepted at once: a storm of them is taken in with one system call for so
/// many.
pub(super) const ACCEPTS_MAX: u16 = 32;

/// Passes of the kernel that may complete nothing though there was something to do: each does some twenty
/// pieces of work, and not every piece completes an operation.
const FRUITLESS_MAX: u8 = 3;

/// How long the kernel may take to give back what it still has when a ring ends.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// A send that is yet to fail or not. See [`Ring::send_now`].
#[derive(Debug)]
pub(super) struct SentNow {
    /// `None`: it failed, and what is left of it goes out otherwise.
    pub(super) conn: Option<ConnId>,
    bytes: Bytes,
}

/// What became of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) token: Token,
    /// As the system call would return: not negative, or a negated `errno`.
    pub(super) result: i32,
    /// The buffer that bytes were received into.
    pub(super) buffer: Option<u16>,
    /// The operation goes on: more completions follow.
    pub(super) more: bool,
}

/// A ring, with a table of direct descriptors and buffers of its own.
pub(super) struct Ring {
    /// First, so that it is dropped before what the kernel may write to.
    uring: IoUring,
    pub(super) buffers: Buffers,
    /// Where the kernel puts the addresses of who comes in.
    addresses: Box<[Address]>,
    /// Sends that must not wait, in order, until it is certain that they did not fail.
    sends_now: VecDeque<SentNow>,
    /// The number of the first of them.
    first_send_now: u64,
    /// The kernel has seen all before this number.
    submitted_sends_now: u64,
    /// Sends that tell how far they came.
    sends: HashMap<u64, Bytes>,
    /// It signals an eventfd when it gets something to do.
    signals: bool,
    /// How often in a row it said that it has something to do, and nothing completed: another processor may
    /// say so when this one has done it already, and it goes on saying so. After [`FRUITLESS_MAX`] times it is
    /// believed again only when it signals.
    fruitless: u8,
    /// Places in the table of direct descriptors.
    pub(super) files_max: u32,
    /// Places that are taken, or will be by who is being accepted.
    pub(super) files: u32,
}

#[repr(C)]
struct Address {
    storage: SockAddrStorage,
    bytes: libc::socklen_t,
}

impl Ring {
    /// A ring with `files_max` direct descriptors and `buffers` buffers, which does nothing before it is
    /// [enabled](Self::enable) by the thread that it belongs to from then on.
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
            sends: HashMap::new(),
            signals: false,
            fruitless: 0,
            files_max,
            files: 0,
        })
    }

    /// Starts it: this thread is the one that uses it.
    pub(super) fn enable(&self) -> io::Result<()> {
        self.uring.submitter().register_enable_rings()
    }

    /// Has it signal an eventfd whenever something completes.
    pub(super) fn signal(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.signals = true;
        self.uring.submitter().register_eventfd(eventfd.as_raw_fd())
    }

    /// Has it complete [`Token::Wake`] each time somebody writes to an eventfd.
    pub(super) fn watch_wakeups(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fd(eventfd.as_raw_fd()), libc::POLLIN as u32).multi(true);
        self.push(poll.build(), Token::Wake)
    }

    /// Takes one connection in, into a free place of the table: there must be one.
    pub(super) fn accept(&mut self, listener: BorrowedFd<'_>, place: u16) -> io::Result<()> {
        debug_assert!(self.files < self.files_max, "a connection would be lost");
        self.files += 1;
        let address = &mut self.addresses[usize::from(place)];
        address.bytes = address.storage.size_of();
        let storage = (&raw mut address.storage).cast();
        let accept = opcode::Accept::new(Fd(listener.as_raw_fd()), storage, &raw mut address.bytes)
            .file_index(Some(DestinationSlot::auto_target()));
        self.push(accept.build(), Token::Accept(place))
    }

    /// Who was accepted into a place, once.
    pub(super) fn take_peer(&mut self, place: u16) -> Option<SocketAddr> {
        let Address { storage, bytes } = &mut self.addresses[usize::from(place)];
        let storage = mem::replace(storage, SockAddrStorage::zeroed());
        let bytes = (*bytes).min(storage.size_of());
        // SAFETY: the kernel has filled the storage as accept(2) does, and set its length; where it accepted
        // nobody, all of it is zero, which is an address of no family.
        unsafe { SockAddr::new(storage, bytes) }.as_socket()
    }

    /// Receives until it is cancelled, buffers run out, or the connection ends.
    pub(super) fn receive(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        let receive = opcode::RecvMulti::new(Fixed(file), 0);
        self.push(receive.build(), Token::Receive(conn))
    }

    /// Completes whenever something more is known of a connection's end, until it is cancelled.
    pub(super) fn watch(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        // Errors and hang-ups are told unasked: poll(2). So is POLLRDHUP, which may be known already: who
        // watched once would hear of that, and not of the reset that follows.
        let watch = opcode::PollAdd::new(Fixed(file), 0).multi(true);
        self.push(watch.build(), Token::Watch(conn))
    }

    /// Asks what a connection died of: a send fails with it. It sends nothing.
    pub(super) fn ask_error(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let send = opcode::Send::new(Fixed(file), std::ptr::null(), 0).flags(flags);
        self.push(send.build(), Token::Error(conn))
    }

    /// Sends as far as there is room. Only a failure completes, a short send among them; the bytes are kept
    /// until it is certain that there was none.
    #[inline]
    pub(super) fn send_now(&mut self, file: u32, conn: ConnId, bytes: Bytes) -> io::Result<()> {
        let number = self.first_send_now + self.sends_now.len() as u64;
        // With MSG_WAITALL a short send counts as a failure, so that it is told: otherwise it would not be.
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let send = opcode::Send::new(Fixed(file), bytes.as_ptr(), length(&bytes)).flags(flags);
        let entry = send.build().flags(squeue::Flags::SKIP_SUCCESS);
        // Kept only now: to push may be to submit what came before, which must not count this one.
        self.push(entry, Token::SendNow(number))?;
        self.sends_now.push_back(SentNow { conn: Some(conn), bytes });
        Ok(())
    }

    /// A send that failed, once. That it is done will be said of nobody.
    pub(super) fn take_failed_send(&mut self, number: u64) -> Option<(ConnId, Bytes)> {
        let index = usize::try_from(number.checked_sub(self.first_send_now)?).ok()?;
        let sent = self.sends_now.get_mut(index)?;
        Some((sent.conn.take()?, sent.bytes.clone()))
    }

    /// The kernel has seen all sends before this number: their failures are among the completions, or were.
    #[inline]
    pub(super) fn submitted_sends(&mut self) -> u64 {
        // What the kernel keeps for want of room is yet to be seen.
        let overflow = self.uring.submission().cq_overflow();
        if overflow { self.first_send_now } else { self.submitted_sends_now }
    }

    /// Forgets the next send before number `until`: all completions have been seen that were there when
    /// [`Self::submitted_sends`] said so.
    #[inline]
    pub(super) fn confirm_send(&mut self, until: u64) -> Option<SentNow> {
        if self.first_send_now >= until {
            return None;
        }
        let sent = self.sends_now.pop_front()?;
        self.first_send_now += 1;
        Some(sent)
    }

    /// Sends as far as there is room, and tells how far. At most one at a time on a connection.
    pub(super) fn send(&mut self, file: u32, conn: ConnId, bytes: Bytes) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let send = opcode::Send::new(Fixed(file), bytes.as_ptr(), length(&bytes)).flags(flags);
        let token = Token::Send(conn);
        let other = self.sends.insert(token.to_bits(), bytes);
        debug_assert!(other.is_none(), "one send at a time");
        self.push(send.build(), token)
    }

    /// Completes whenever there is room to send, or a connection is dead, until it is cancelled. The peer's
    /// end completes it too, once: see [`Self::watch`].
    pub(super) fn watch_for_room(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        let watch = opcode::PollAdd::new(Fixed(file), libc::POLLOUT as u32).multi(true);
        self.push(watch.build(), Token::Room(conn))
    }

    /// The bytes of a send that has completed.
    pub(super) fn take_send(&mut self, conn: ConnId) -> Option<Bytes> {
        self.sends.remove(&Token::Send(conn).to_bits())
    }

    /// Shuts down the sending side.
    pub(super) fn shutdown(&mut self, file: u32, conn: ConnId) -> io::Result<()> {
        let shutdown = opcode::Shutdown::new(Fixed(file), libc::SHUT_WR);
        self.push(shutdown.build(), Token::Shutdown(conn))
    }

    /// Cancels an operation: it completes with `ECANCELED`, unless it completes otherwise.
    pub(super) fn cancel(&mut self, token: Token) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(token.to_bits()).build();
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS), Token::Nothing)
    }

    /// Takes a descriptor out of the table: its place is free. What is under way goes on, but for a shutdown,
    /// which must have completed.
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
        // SAFETY: what the entry points to outlives the operation. Addresses and buffers are the ring's, the
        // bytes of sends are kept in `sends_now` and `sends` until their completion has been seen.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("the kernel took nothing of a full submission queue"))
    }

    /// Hands what was asked for to the kernel, and lets it complete what it can.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.enter(0, None)
    }

    /// The same, and waits for a completion, at most so long.
    pub(super) fn submit_and_wait(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.enter(1, wait)
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
            // Time is up, a signal came, or completions have to be seen first: what was submitted is.
            Ok(_) | Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(_) => return entered.map(drop),
        }
        if self.uring.submission().is_empty() {
            self.submitted_sends_now = self.first_send_now + self.sends_now.len() as u64;
        }
        if self.signals && !self.has_completions() && self.says_more() {
            self.fruitless = self.fruitless.saturating_add(1);
        } else {
            self.fruitless = 0;
        }
        Ok(())
    }

    /// Whether there is something to submit.
    #[inline]
    pub(super) fn has_submissions(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// How much there is to submit.
    #[cfg(test)]
    pub(super) fn submissions(&mut self) -> usize {
        self.uring.submission().len()
    }

    /// Whether there is something to see.
    #[inline]
    pub(super) fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Whether there may be something to see after a [`Self::submit`].
    #[inline]
    pub(super) fn may_complete(&mut self) -> bool {
        self.fruitless < FRUITLESS_MAX && self.says_more()
    }

    /// Some ring has got something to do: perhaps this one.
    pub(super) fn signalled(&mut self) {
        self.fruitless = 0;
    }

    fn says_more(&mut self) -> bool {
        let submissions = self.uring.submission();
        submissions.taskrun() || submissions.cq_overflow()
    }

    /// Moves the completions that are there to `into`.
    pub(super) fn take_completions(&mut self, into: &mut Vec<Completion>) {
        let completion = |entry: cqueue::Entry| Completion {
            token: Token::from_bits(entry.user_data()),
            result: entry.result(),
            buffer: cqueue::buffer_select(entry.flags()),
            more: cqueue::more(entry.flags()),
        };
        into.extend(self.uring.completion().map(completion));
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let timeout = Timespec::from(CANCEL_TIMEOUT);
        let all = CancelBuilder::any().all();
        let cancelled = self.uring.submitter().register_sync_cancel(Some(timeout), all);
        // ENOENT: nothing was under way.
        if cancelled.is_err_and(|error| error.raw_os_error() != Some(libc::ENOENT)) {
            // The kernel may still read and write: better lost than wrong.
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

/// A send's length. A longer one is cut: it is short, and the rest follows.
fn length(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX >> 1)
}
