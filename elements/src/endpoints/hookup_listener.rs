//! Where applications ask: a seqpacket socket in the run directory, one request per datagram.
//!
//! Invariant: a stranger's or malformed request is answered with `Refused` and an event, and the rest goes on.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use armor_core::context::{Context, Handle};
use armor_core::element::Element;
use armor_core::events::Event;
use armor_proto::hookup::{DATAGRAM_LIMIT, Reply, Request};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::unix::AsyncFd;

/// Most applications that may be connected to ask at once; more wait in the kernel's queue.
const BACKLOG: i32 = 4096;

/// One request.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// The socket that came along.
    pub socket: Option<OwnedFd>,
    /// The process that asks, the kernel's word.
    pub pid: u32,
    /// Where the answer goes.
    pub reply: ReplyTo,
}

/// Where an answer goes; it may be kept and used later.
#[derive(Debug, Clone)]
pub struct ReplyTo {
    asker: Rc<AsyncFd<OwnedFd>>,
}

impl ReplyTo {
    /// For tests: an answer's way, and the socket where it arrives.
    #[cfg(test)]
    #[allow(clippy::unwrap_used)]
    pub(crate) fn pair() -> (ReplyTo, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, asker) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (ReplyTo { asker: Rc::new(super::watched::watched(own).unwrap()) }, asker)
    }

    /// Answers, with a socket beside it or without. An asker that is gone is no error.
    pub fn send(&self, reply: &Reply, socket: Option<BorrowedFd<'_>>) {
        let Ok(bytes) = reply.encode() else { return };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets = socket.map(|socket| [socket]);
        if let Some(sockets) = &sockets {
            control.push(SendAncillaryMessage::ScmRights(sockets));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let Err(error) = net::sendmsg(self.asker.get_ref(), &[IoSlice::new(&bytes)], &mut control, flags) {
            tracing::debug!(%error, "an application did not wait for its answer");
        }
    }
}

/// The listening socket.
#[derive(Debug)]
pub struct HookupListener {
    socket: OwnedFd,
}

impl HookupListener {
    /// Listens at `path`, for the own user alone. A socket that was left behind by a dead ARMOR is replaced.
    ///
    /// # Errors
    /// The kernel's: the directory is missing or cannot be written, the path is too long.
    pub fn bind(path: &Path) -> io::Result<HookupListener> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        net::listen(&socket, BACKLOG)?;
        Ok(HookupListener { socket })
    }

    /// Serves requests: `serve` is called for each of them, in the element's thread.
    pub fn serve<E: Element>(self, allowed: Vec<u32>, context: &mut Context<'_>, serve: fn(&mut E, Asked, &mut Context<'_>)) {
        let handle = context.handle::<E>();
        context.spawn(async move {
            let Ok(listener) = super::watched::watched(self.socket) else { return };
            let allowed: Rc<[u32]> = allowed.into();
            loop {
                let Ok(mut ready) = listener.readable().await else { return };
                loop {
                    match net::accept_with(listener.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                        Ok(asker) => {
                            // Most requests are there already when the connection is: serve them in this turn.
                            if let Ok(asker) = super::watched::watched(asker) {
                                let asker = Rc::new(asker);
                                if let Some(waiting) = Conversation::new(asker, &allowed, handle.clone(), serve) {
                                    waiting.go_on();
                                }
                            }
                        }
                        Err(Errno::AGAIN) => break,
                        Err(Errno::MFILE | Errno::NFILE) => {
                            handle.call(|_, context| {
                                context.event(Event::new("hook-up-refused").with("reason", "out of file descriptors; raise ulimit -n"))
                            });
                            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        }
                        Err(_) => {}
                    }
                }
                ready.clear_ready();
            }
        });
    }
}

struct Conversation<E: Element> {
    asker: Rc<AsyncFd<OwnedFd>>,
    pid: u32,
    handle: Handle<E>,
    serve: fn(&mut E, Asked, &mut Context<'_>),
}

enum Next {
    Again,
    Wait,
    End,
}

impl<E: Element> Conversation<E> {
    fn new(asker: Rc<AsyncFd<OwnedFd>>, allowed: &[u32], handle: Handle<E>, serve: fn(&mut E, Asked, &mut Context<'_>)) -> Option<Self> {
        let peer = net::sockopt::socket_peercred(asker.get_ref()).ok()?;
        let uid = peer.uid.as_raw();
        let pid = peer.pid.as_raw_nonzero().get() as u32;
        if uid != 0 && uid != rustix::process::geteuid().as_raw() && !allowed.contains(&uid) {
            let reason = format!("user {uid} may not hook up here");
            ReplyTo { asker }.send(&Reply::Refused { reason: reason.clone() }, None);
            handle.call(|_, context| context.event(Event::new("hook-up-refused").with("pid", pid).with("reason", reason)));
            return None;
        }
        Some(Conversation { asker, pid, handle, serve })
    }

    fn go_on(self) {
        loop {
            match self.one() {
                Next::Again => {}
                Next::End => return,
                Next::Wait => break,
            }
        }
        tokio::task::spawn_local(async move {
            loop {
                let Ok(mut ready) = self.asker.readable().await else { return };
                loop {
                    match self.one() {
                        Next::Again => {}
                        Next::End => return,
                        Next::Wait => break,
                    }
                }
                ready.clear_ready();
            }
        });
    }

    fn one(&self) -> Next {
        let mut bytes = [0u8; DATAGRAM_LIMIT + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let length = match net::recvmsg(self.asker.get_ref(), &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(message) if message.bytes == 0 => return Next::End,
            Ok(message) => message.bytes,
            Err(Errno::AGAIN) => return Next::Wait,
            Err(Errno::INTR) => return Next::Again,
            Err(_) => return Next::End,
        };
        let mut sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let socket = sockets.next().and_then(|mut sockets| sockets.next());
        let reply = ReplyTo { asker: Rc::clone(&self.asker) };
        match Request::decode(&bytes[..length]) {
            Ok(request) => {
                let asked = Asked { request, socket, pid: self.pid, reply };
                if self.handle.call(|element, context| (self.serve)(element, asked, context)).is_none() {
                    return Next::End;
                }
                Next::Again
            }
            Err(error) => {
                reply.send(&Reply::Refused { reason: error.to_string() }, None);
                self.handle.call(|_, context| {
                    context.event(Event::new("hook-up-refused").with("pid", self.pid).with("reason", error));
                });
                Next::End
            }
        }
    }
}
