//! Frames over the agent's Unix socket: whole ones out, whole ones in, with a deadline.
//!
//! It does not know what a frame means or which one answers which.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use zunft_protocol::limits::LOCAL_FRAME_BYTES_MAX;
use zunft_protocol::local::{FrameType, HEADER_BYTES, Header};

use crate::clock;
use crate::error::CallError;

/// Room for each read: many answers and events at once, and little enough to keep.
const READ_BYTES: usize = 16 * 1024;

/// How long to wait for a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// Only for what is here already.
    Not,
    /// Until this moment.
    Until(Instant),
    /// As long as the agent lives.
    Forever,
}

/// A frame from the agent.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    out: Vec<u8>,
    inbox: Vec<u8>,
    /// Bytes of `inbox` that hold something.
    filled: usize,
    failed: bool,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, out: Vec::new(), inbox: Vec::new(), filled: 0, failed: false }
    }

    /// Declares the connection useless: nobody can tell any more what the next bytes mean.
    pub(crate) fn fail(&mut self) {
        self.failed = true;
    }

    /// Sends one frame, whose body `encode` appends.
    pub(crate) fn send(
        &mut self,
        call: &'static str,
        frame_type: FrameType,
        request: u32,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), CallError> {
        if self.failed {
            return Err(CallError::Failed);
        }
        self.out.clear();
        self.out.extend_from_slice(&[0; HEADER_BYTES]);
        encode(&mut self.out);
        let bytes = self.out.len() - HEADER_BYTES;
        if bytes > LOCAL_FRAME_BYTES_MAX {
            return Err(CallError::TooLarge { call, bytes });
        }
        let header = Header { frame_type, request, body_bytes: bytes as u32 };
        self.out[..HEADER_BYTES].copy_from_slice(&header.encode());
        self.stream.write_all(&self.out).map_err(|source| self.refused_write(source))
    }

    /// The next frame, or `None` when the wait is over.
    pub(crate) fn receive(&mut self, wait: Wait) -> Result<Option<Frame>, CallError> {
        loop {
            if self.failed {
                return Err(CallError::Failed);
            }
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            if !self.fill(wait)? {
                return Ok(None);
            }
        }
    }

    /// An agent that closes says why first: that answer is still to be read, so only reading fails for good.
    fn refused_write(&mut self, source: io::Error) -> CallError {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return CallError::Closed;
        }
        self.failed = true;
        CallError::Io(source)
    }

    fn take_frame(&mut self) -> Result<Option<Frame>, CallError> {
        let Some(bytes) = self.inbox[..self.filled].first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::decode(*bytes).inspect_err(|_| self.failed = true)?;
        let frame_bytes = HEADER_BYTES + header.body_bytes as usize;
        if self.filled < frame_bytes {
            return Ok(None);
        }
        let body = self.inbox[HEADER_BYTES..frame_bytes].to_vec();
        self.inbox.copy_within(frame_bytes..self.filled, 0);
        self.filled -= frame_bytes;
        Ok(Some(Frame { header, body }))
    }

    /// Reads what is there, after waiting for it; false when the wait is over.
    fn fill(&mut self, wait: Wait) -> Result<bool, CallError> {
        if self.inbox.len() < self.filled + READ_BYTES {
            self.inbox.resize((self.filled + READ_BYTES).max(self.inbox.len() * 2), 0);
        }
        loop {
            match self.read_once(wait) {
                Ok(0) => {
                    self.failed = true;
                    return Err(CallError::Closed);
                }
                Ok(bytes) => {
                    self.filled += bytes;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(error) => {
                    self.failed = true;
                    return Err(CallError::Io(error));
                }
            }
        }
    }

    fn read_once(&mut self, wait: Wait) -> io::Result<usize> {
        let room = &mut self.inbox[self.filled..];
        match wait {
            Wait::Forever => self.stream.read(room),
            Wait::Until(deadline) => {
                let left = deadline.saturating_duration_since(clock::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                self.stream.set_read_timeout(Some(left))?;
                let read = self.stream.read(room);
                self.stream.set_read_timeout(None)?;
                read
            }
            Wait::Not => {
                self.stream.set_nonblocking(true)?;
                let read = self.stream.read(room);
                self.stream.set_nonblocking(false)?;
                read
            }
        }
    }
}
