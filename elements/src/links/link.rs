//! One framed link over a connected socket, in the thread of the element that owns it.
//!
//! Reading is a task: bytes go into a recycled buffer, whole frames are sliced off and handed to the element. Writing happens
//! in the turn that sends; what the kernel does not take waits in a bounded queue that a second task flushes.
//!
//! Invariants: frames leave in the order in which they were sent and never in part; `link_closed` is called exactly once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;

use armor_core::context::{Context, Handle};
use armor_core::element::Element;
use armor_proto::frame::{Encoded, Frame, FrameError};
use armor_proto::secure::{RecordError, RecordSealer};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::Notify;

use super::handshake::{Channel, Incoming};
use super::stream::{Acknowledged, ReadHalf, Stream, WriteHalf};

/// Most bytes that may wait for a peer which does not read; one frame more is dropped.
pub const OUT_LIMIT: usize = 8 << 20;
/// Size of the buffer to read into; it grows to the second figure while reads fill it.
const READ_SIZE: (usize, usize) = (64 << 10, 256 << 10);
/// Most pieces given to the kernel in one call.
const WRITE_PIECES: usize = 64;

/// Bytes that are encrypted together when several frames wait.
const BATCH: usize = 256 << 10;
/// What the buffer of encrypted bytes keeps when it is empty.
const KEPT: usize = 512 << 10;

/// Number of a link, unique within its element.
pub type LinkId = u64;

/// An element that owns links.
pub trait LinkOwner: Element {
    /// A frame has come by a link.
    fn link_frame(&mut self, link: LinkId, frame: Frame, context: &mut Context<'_>);
    /// A link has ended.
    fn link_closed(&mut self, link: LinkId, why: &Closed, context: &mut Context<'_>);
}

/// Why a link has ended.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// End of stream between two frames, or closed here.
    #[error("closed")]
    End,
    /// End of stream inside a frame.
    #[error("closed inside a frame")]
    Torn,
    /// The socket's error.
    #[error("{0}")]
    Socket(io::Error),
    /// The peer sent what is no frame.
    #[error("{0}")]
    Frame(FrameError),
    /// What came does not verify.
    #[error("{0}")]
    Record(RecordError),
    /// What R-UDP has found.
    #[error("{0}")]
    Datagrams(armor_proto::rudp::CloseReason),
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The kernel has it.
    Written,
    /// It waits for the peer to read.
    Queued,
    /// Dropped at [`OUT_LIMIT`]; the first one since the queue was empty last.
    FirstDropped,
    /// Dropped at [`OUT_LIMIT`].
    Dropped,
    /// The link is closed; the frame is dropped.
    Closed,
}

/// The element's side of a link.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    write: WriteHalf,
    out: RefCell<Out>,
    /// Of a link that is protected. What waits in `out` is encrypted when it is its turn, together.
    sealing: Option<RefCell<Sealing>>,
    wake: Notify,
    /// Closed here: nothing more is read or written.
    closed: Cell<bool>,
    /// The peer takes no more. What it sent before is still read; the reader finds its end.
    broken: Cell<bool>,
    dropped: Cell<u64>,
}

#[derive(Debug, Default)]
struct Out {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    dropping: bool,
}

/// Encrypted bytes on their way to the kernel.
#[derive(Debug)]
struct Sealing {
    sealer: RecordSealer,
    bytes: Vec<u8>,
    written: usize,
}

impl Sealing {
    fn left(&self) -> usize {
        self.bytes.len() - self.written
    }

    fn is_empty(&self) -> bool {
        self.left() == 0
    }

    /// Encrypts what is to follow; the buffer is empty.
    fn seal(&mut self, pieces: &[&[u8]]) -> io::Result<()> {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.written = 0;
        self.sealer.seal(pieces, &mut self.bytes).map_err(io::Error::other)
    }

    /// Writes all of it, or says why not.
    fn write(&mut self, half: &WriteHalf) -> io::Result<()> {
        while !self.is_empty() {
            match half.try_write(&[IoSlice::new(&self.bytes[self.written..])]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Link {
    /// Starts a link over a connected socket.
    pub fn open<E: LinkOwner>(id: LinkId, stream: Stream, context: &mut Context<'_>) -> Link {
        let (read, write) = stream.split();
        let shared = Shared::new(write, None);
        context.spawn(read_frames::<E>(id, read, Rc::clone(&shared), context.handle()));
        context.spawn(flush_when_writable(Rc::clone(&shared)));
        Link { shared }
    }

    /// Starts a link whose frames are encrypted and authenticated, over a socket on which the handshake is done.
    pub fn open_protected<E: LinkOwner>(id: LinkId, stream: Stream, channel: Channel, context: &mut Context<'_>) -> Link {
        let (read, write) = stream.split();
        let Channel { sealer, incoming, .. } = channel;
        let shared = Shared::new(write, Some(sealer));
        context.spawn(read_protected_frames::<E>(id, read, incoming, Rc::clone(&shared), context.handle()));
        context.spawn(flush_when_writable(Rc::clone(&shared)));
        Link { shared }
    }

    /// Sends a frame, now if the kernel takes it.
    pub fn send(&self, encoded: Encoded) -> Sent {
        let shared = &*self.shared;
        if shared.closed.get() || shared.broken.get() {
            return Sent::Closed;
        }
        let mut out = shared.out.borrow_mut();
        if !out.pieces.is_empty() {
            return self.queue(&mut out, encoded, 0);
        }
        if let Some(sealing) = &shared.sealing {
            return self.send_protected(&mut sealing.borrow_mut(), &mut out, encoded);
        }
        loop {
            match shared.write.try_write(&[IoSlice::new(&encoded.head), IoSlice::new(&encoded.payload)]) {
                Ok(written) if written == encoded.len() => return Sent::Written,
                Ok(written) => return self.queue(&mut out, encoded, written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.queue(&mut out, encoded, 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    shared.broken.set(true);
                    return Sent::Closed;
                }
            }
        }
    }

    fn send_protected(&self, sealing: &mut Sealing, out: &mut Out, encoded: Encoded) -> Sent {
        if !sealing.is_empty() {
            return self.queue(out, encoded, 0);
        }
        match sealing.seal(&[&encoded.head, &encoded.payload]).and_then(|()| sealing.write(&self.shared.write)) {
            Ok(()) => Sent::Written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.shared.wake.notify_one();
                Sent::Queued
            }
            Err(_) => {
                self.shared.broken.set(true);
                Sent::Closed
            }
        }
    }

    /// Renews the key with which this side encrypts, if there is one and it has been used.
    pub fn rekey(&self) {
        if let Some(sealing) = &self.shared.sealing {
            sealing.borrow_mut().sealer.rekey();
        }
    }

    /// Keys with which this side has encrypted so far; 0 for a link that is not protected.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.shared.sealing.as_ref().map_or(0, |sealing| sealing.borrow().sealer.keys())
    }

    fn queue(&self, out: &mut Out, encoded: Encoded, written: usize) -> Sent {
        let length = encoded.len() - written;
        // What was begun must be finished, whatever its size.
        if written == 0 && !out.pieces.is_empty() && out.bytes + length > OUT_LIMIT {
            self.shared.dropped.set(self.shared.dropped.get() + 1);
            return if std::mem::replace(&mut out.dropping, true) { Sent::Dropped } else { Sent::FirstDropped };
        }
        let mut skip = written;
        for mut piece in [encoded.head, encoded.payload] {
            let skipped = skip.min(piece.len());
            piece.advance(skipped);
            skip -= skipped;
            if !piece.is_empty() {
                out.pieces.push_back(piece);
            }
        }
        out.bytes += length;
        self.shared.wake.notify_one();
        Sent::Queued
    }

    /// Ends the link; `link_closed` follows.
    pub fn close(&self) {
        self.shared.close();
    }

    /// What the peer's kernel has acknowledged; `None` when this kernel does not say.
    #[must_use]
    pub fn acknowledged(&self) -> Option<Acknowledged> {
        self.shared.write.acknowledged()
    }

    /// Bytes that wait for the peer to read.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.shared.out.borrow().bytes + self.shared.sealing.as_ref().map_or(0, |sealing| sealing.borrow().left())
    }

    /// Frames dropped at [`OUT_LIMIT`].
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.get()
    }
}

impl Shared {
    fn new(write: WriteHalf, sealer: Option<RecordSealer>) -> Rc<Shared> {
        Rc::new(Shared {
            write,
            out: RefCell::default(),
            sealing: sealer.map(|sealer| RefCell::new(Sealing { sealer, bytes: Vec::new(), written: 0 })),
            wake: Notify::new(),
            closed: Cell::new(false),
            broken: Cell::new(false),
            dropped: Cell::new(0),
        })
    }

    fn has_nothing_to_write(&self) -> bool {
        self.out.borrow().pieces.is_empty() && self.sealing.as_ref().is_none_or(|sealing| sealing.borrow().is_empty())
    }

    fn close(&self) {
        if !self.closed.replace(true) {
            self.write.shutdown();
            self.wake.notify_one();
        }
    }

    /// Writes until nothing waits or the kernel takes no more.
    fn flush(&self) -> io::Result<()> {
        let mut out = self.out.borrow_mut();
        if let Some(sealing) = &self.sealing {
            return flush_protected(&mut sealing.borrow_mut(), &mut out, &self.write);
        }
        while !out.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_PIECES];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&out.pieces) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            let mut written = match self.write.try_write(&slices[..count]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            out.bytes -= written;
            while let Some(piece) = out.pieces.front_mut() {
                if piece.len() > written {
                    piece.advance(written);
                    break;
                }
                written -= piece.len();
                out.pieces.pop_front();
            }
        }
        out.dropping = false;
        Ok(())
    }
}

/// The same, encrypting what waits a batch at a time.
fn flush_protected(sealing: &mut Sealing, out: &mut Out, half: &WriteHalf) -> io::Result<()> {
    sealing.write(half)?;
    let mut batch: Vec<Bytes> = Vec::new();
    while !out.pieces.is_empty() {
        let mut size = 0;
        while size < BATCH
            && let Some(piece) = out.pieces.pop_front()
        {
            size += piece.len();
            batch.push(piece);
        }
        out.bytes -= size;
        sealing.seal(&batch.iter().map(|piece| &**piece).collect::<Vec<_>>())?;
        batch.clear();
        sealing.write(half)?;
    }
    out.dropping = false;
    Ok(())
}

async fn flush_when_writable(shared: Rc<Shared>) {
    loop {
        shared.wake.notified().await;
        loop {
            if shared.closed.get() {
                return;
            }
            if shared.has_nothing_to_write() {
                break;
            }
            let result = match shared.write.writable().await {
                Ok(()) => shared.flush(),
                Err(error) => Err(error),
            };
            if let Err(error) = result
                && error.kind() != io::ErrorKind::WouldBlock
            {
                shared.broken.set(true);
                let mut out = shared.out.borrow_mut();
                out.pieces.clear();
                out.bytes = 0;
                return;
            }
        }
    }
}

async fn read_frames<E: LinkOwner>(id: LinkId, mut half: ReadHalf, shared: Rc<Shared>, handle: Handle<E>) {
    let mut size = READ_SIZE.0;
    let mut buffer = BytesMut::with_capacity(size);
    let why = loop {
        if buffer.capacity() - buffer.len() < size / 4 {
            // Takes the old space again when no frame in it is alive any more.
            buffer.reserve(size);
        }
        let space = buffer.capacity() - buffer.len();
        match half.read(&mut buffer).await {
            Ok(0) if buffer.is_empty() || shared.closed.get() => break Closed::End,
            Ok(0) => break Closed::Torn,
            Ok(got) if got == space => size = (size * 2).min(READ_SIZE.1),
            Ok(_) => {}
            Err(error) => break Closed::Socket(error),
        }
        let taken = handle.call(|element, context| {
            while !shared.closed.get()
                && let Some(frame) = Frame::take(&mut buffer)?
            {
                element.link_frame(id, frame, context);
            }
            Ok(())
        });
        match taken {
            Some(Ok(())) => {}
            Some(Err(error)) => break Closed::Frame(error),
            None => return,
        }
    };
    shared.close();
    handle.call(|element, context| element.link_closed(id, &why, context));
}

async fn read_protected_frames<E: LinkOwner>(
    id: LinkId,
    mut half: ReadHalf,
    mut incoming: Incoming,
    shared: Rc<Shared>,
    handle: Handle<E>,
) {
    let mut size = READ_SIZE.0;
    let why = loop {
        // First of all: the handshake may have read the peer's first words.
        if let Err(error) = incoming.open() {
            break Closed::Record(error);
        }
        let taken = handle.call(|element, context| {
            while !shared.closed.get()
                && let Some(frame) = Frame::take(&mut incoming.plain)?
            {
                element.link_frame(id, frame, context);
            }
            Ok(())
        });
        match taken {
            Some(Ok(())) => {}
            Some(Err(error)) => break Closed::Frame(error),
            None => return,
        }
        match incoming.read(&mut half, size).await {
            Ok(0) if incoming.is_between_frames() || shared.closed.get() => break Closed::End,
            Ok(0) => break Closed::Torn,
            Ok(got) if got >= size => size = (size * 2).min(READ_SIZE.1),
            Ok(_) => {}
            Err(error) => break Closed::Socket(error),
        }
    };
    shared.close();
    handle.call(|element, context| element.link_closed(id, &why, context));
}
