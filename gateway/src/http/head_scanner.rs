//! Finds requests whose length can be understood in two ways: those with both `Transfer-Encoding` and `Content-Length`.
//!
//! A proxy that interprets it differently would see a second request where this gateway sees a body, and a client could smuggle that
//! request past it. hyper goes by `Transfer-Encoding`, as RFC 9112 allows, and then shows only that one. This scanner reads the
//! same bytes beside it, so that such a request is answered with 400 (RFC 9112, 6.3).
//!
//! It never decides what a request is. About a request that it does not know it has no answer, and its caller closes the connection.

use std::collections::VecDeque;

/// What the scanner knows of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// It has no body, or one with a length.
    Length,
    /// Its body is chunked. The connection has to be closed behind it: the scanner does not follow chunks.
    Chunked,
    /// It has a length and is chunked.
    Ambiguous,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct HeadScanner {
    state: State,
    /// Longest head, in bytes. hyper refuses longer ones.
    head_bytes_max: usize,
    /// Of the requests whose heads are complete, the oldest first.
    framings: VecDeque<Framing>,
}

#[derive(Debug)]
enum State {
    /// In a head, of which earlier reads brought these bytes.
    Head(Vec<u8>),
    /// In a body, of which this many bytes are to come.
    Body(u64),
    /// It can't follow.
    Lost,
}

impl HeadScanner {
    pub(super) const fn new(head_bytes_max: usize) -> Self {
        Self { state: State::Head(Vec::new()), head_bytes_max, framings: VecDeque::new() }
    }

    /// How the next request is framed; `None`: it can't say.
    pub(super) fn next(&mut self) -> Option<Framing> {
        self.framings.pop_front()
    }

    fn head(&mut self, head: &[u8]) -> State {
        let (mut length, mut is_chunked) = (None, false);
        for line in head.split(|&byte| byte == b'\n') {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"transfer-encoding") {
                is_chunked = true;
            } else if name.eq_ignore_ascii_case(b"content-length") {
                length = Some(str::from_utf8(value).ok().and_then(|text| text.parse().ok()));
            }
        }
        let (framing, state) = match (length, is_chunked) {
            (Some(_), true) => (Framing::Ambiguous, State::Lost),
            (None, true) => (Framing::Chunked, State::Lost),
            // hyper refuses it.
            (Some(None), false) => return State::Lost,
            (Some(Some(0)) | None, false) => (Framing::Length, State::Head(Vec::new())),
            (Some(Some(bytes)), false) => (Framing::Length, State::Body(bytes)),
        };
        self.framings.push_back(framing);
        state
    }
}

impl HeadScanner {
    /// These bytes have arrived. Each is looked at once. A head is copied only if it does not come in one piece, so many
    /// short heads cost no more than one long one.
    pub(super) fn on_bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Lost => return,
                State::Body(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= taken as u64;
                    bytes = &bytes[taken..];
                    if *left == 0 {
                        self.state = State::Head(Vec::new());
                    }
                }
                State::Head(kept) => {
                    // Empty lines before a request are not part of it: RFC 9112, 2.2.
                    if kept.is_empty() && matches!(bytes[0], b'\r' | b'\n') {
                        bytes = &bytes[1..];
                        continue;
                    }
                    let Some(end) = end_of_head(kept, bytes) else {
                        kept.extend_from_slice(bytes);
                        if kept.len() > self.head_bytes_max {
                            self.state = State::Lost;
                        }
                        return;
                    };
                    let (last, rest) = bytes.split_at(end);
                    let mut kept = std::mem::take(kept);
                    self.state = if kept.is_empty() {
                        self.head(last)
                    } else {
                        kept.extend_from_slice(last);
                        self.head(&kept)
                    };
                    bytes = rest;
                }
            }
        }
    }
}

/// The index in `bytes` behind the empty line that ends a head, of which `kept` came before.
fn end_of_head(kept: &[u8], bytes: &[u8]) -> Option<usize> {
    // The bytes before `at`, the last one first.
    let before = |at: usize| bytes[..at].iter().rev().chain(kept.iter().rev());
    let line_feeds = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let mut ends = line_feeds.map(|(at, _)| at).filter(|&at| {
        let mut before = before(at);
        match before.next() {
            Some(b'\r') => before.next() == Some(&b'\n'),
            previous => previous == Some(&b'\n'),
        }
    });
    ends.next().map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a scanner finds where the bytes come in pieces of this length.
    fn found(bytes: &[u8], piece: usize) -> Vec<Framing> {
        let mut scanner = HeadScanner::new(1024);
        bytes.chunks(piece).for_each(|piece| scanner.on_bytes(piece));
        std::iter::from_fn(|| scanner.next()).collect()
    }

    #[test]
    fn each_request_is_found_however_its_bytes_are_cut() {
        use Framing::{Ambiguous, Chunked, Length};
        let get = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
        let post = "\r\nPOST /b HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: 5\r\n\r\n\r\n\r\nx";
        let bare = "GET /c HTTP/1.1\nHost: x\n\n";
        let chunked = "POST /d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        let both = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n";
        let swapped = "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (text, framings) in [
            (
                [get, post, bare, get, chunked, get].concat(),
                &[Length, Length, Length, Length, Chunked][..],
            ),
            ([post, both, get].concat(), &[Length, Ambiguous]),
            ([swapped, get].concat(), &[Ambiguous]),
            ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_owned(), &[]),
        ] {
            for piece in 1..text.len() {
                assert_eq!(
                    found(text.as_bytes(), piece),
                    framings,
                    "{text:?} in pieces of {piece}"
                );
            }
        }
    }

    /// 16 MiB of them: copied or searched once for each head, they would take hours.
    #[test]
    fn many_short_heads_in_one_piece_cost_no_more_than_their_bytes() {
        let heads = b"a\n\n".repeat(16 * 1024 * 1024 / 3);
        let mut scanner = HeadScanner::new(1024);
        scanner.on_bytes(&heads);
        assert_eq!(scanner.framings.len(), heads.len() / 3);
    }

    #[test]
    fn a_head_without_end_is_not_kept() {
        let mut scanner = HeadScanner::new(1024);
        (0..10_000).for_each(|_| scanner.on_bytes(b"x: y\r\n"));
        assert!(matches!(scanner.state, State::Lost));
    }
}
