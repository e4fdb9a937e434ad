//! The one task of a socket: what arrives, what is due, what leaves, and what the element is told, until nothing is left to do.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use armor_core::context::{Context, Handle};
use armor_proto::frame::Frame;
use armor_proto::rudp::{CloseReason, Event, Transmit};

use super::socket::{Batch, Timer};
use super::{Closed, DatagramOwner, LinkId, Opened, Shared, canonical, frame_of};

/// Batches read before others have their turn.
const BATCHES: usize = 4;
/// Frames handed over in one call of the element.
const FRAMES: usize = 256;

/// What the element is to be told.
enum Told {
    Opened(LinkId, Opened),
    Frame(LinkId, Frame),
    Moved(LinkId, SocketAddr),
    Silent(LinkId, bool),
    Closed(LinkId, Closed),
}

/// What the kernel did not take yet.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    buffer: Vec<u8>,
    waiting: Option<Transmit>,
}

pub(super) async fn drive<E: DatagramOwner>(shared: Rc<Shared>, mut timer: Timer, handle: Handle<E>) {
    let mut batch = Batch::new();
    let mut told = Vec::new();
    loop {
        let now = Instant::now();
        {
            let mut endpoint = shared.endpoint.borrow_mut();
            for _ in 0..BATCHES {
                if shared.socket.receive(&mut batch, |from, datagram| endpoint.handle_datagram(now, from, datagram)) == 0 {
                    break;
                }
            }
            endpoint.handle_timeout(now);
        }
        // What the element says to what it is told leaves too before anybody waits.
        loop {
            let more = collect(&shared, &mut told);
            if told.is_empty() {
                break;
            }
            let called = handle.call(|element, context| {
                for told in told.drain(..) {
                    tell(element, told, context);
                }
            });
            if called.is_none() {
                return;
            }
            if !more {
                break;
            }
        }
        let due = transmit(&shared);
        let untold = !shared.closed.borrow().is_empty();
        if let Some(due) = due {
            timer.arm(due, Instant::now());
        }
        if untold {
            shared.wake.notify_one();
        }
        let blocked = shared.outgoing.borrow().waiting.is_some();
        tokio::select! {
            () = shared.wake.notified() => {}
            () = shared.socket.readable() => {}
            () = timer.expired() => {}
            () = shared.socket.writable(), if blocked => {}
        }
    }
}

/// Sends until nothing may leave or the kernel takes no more; when there is something to do again.
pub(super) fn transmit(shared: &Shared) -> Option<Instant> {
    let mut endpoint = shared.endpoint.borrow_mut();
    let outgoing = &mut *shared.outgoing.borrow_mut();
    let socket = &shared.socket;
    loop {
        let transmit = match outgoing.waiting.take() {
            Some(waiting) => waiting,
            None => match endpoint.poll_transmit(Instant::now(), &mut outgoing.buffer, socket.segments()) {
                Some(transmit) => transmit,
                None => return endpoint.poll_timeout(),
            },
        };
        if !socket.send(transmit.to, &outgoing.buffer[..transmit.size], transmit.segment_size) {
            outgoing.waiting = Some(transmit);
            return None;
        }
    }
}

/// Takes events and messages from the endpoint; true when there are more.
fn collect(shared: &Shared, told: &mut Vec<Told>) -> bool {
    let mut endpoint = shared.endpoint.borrow_mut();
    let mut links = shared.links.borrow_mut();
    for id in shared.closed.borrow_mut().drain(..) {
        if links.remove(&id).is_some() {
            told.push(Told::Closed(id, Closed::End));
        }
    }
    while told.len() < FRAMES {
        let Some(event) = endpoint.poll_event() else { return false };
        match event {
            Event::Connected { link, peer, initiator } => {
                let id = LinkId::from(link.0);
                let Some(status) = endpoint.status(link) else { continue };
                links.entry(id).or_default();
                told.push(Told::Opened(id, Opened { remote: canonical(status.remote), identity: peer, dialled: initiator }));
            }
            Event::Readable(link) => {
                let id = LinkId::from(link.0);
                if !links.contains_key(&id) {
                    continue;
                }
                while let Some(received) = endpoint.receive(link) {
                    match frame_of(received.payload) {
                        Ok(frame) => told.push(Told::Frame(id, frame)),
                        Err(why) => {
                            endpoint.close(Instant::now(), link, super::CLOSED_HERE);
                            links.remove(&id);
                            told.push(Told::Closed(id, why));
                            break;
                        }
                    }
                }
            }
            Event::Writable(_) => {}
            Event::Silent(link) => told.push(Told::Silent(LinkId::from(link.0), true)),
            Event::Answered(link) => told.push(Told::Silent(LinkId::from(link.0), false)),
            Event::Moved { link, remote } => told.push(Told::Moved(LinkId::from(link.0), canonical(remote))),
            Event::Closed { link, reason } => {
                let id = LinkId::from(link.0);
                if links.remove(&id).is_some() {
                    told.push(Told::Closed(id, closed(&reason)));
                }
            }
        }
    }
    true
}

fn closed(reason: &CloseReason) -> Closed {
    match reason {
        CloseReason::ByPeer(_) => Closed::End,
        CloseReason::NoAnswer(_) | CloseReason::Fault(_) | CloseReason::Refused(_) => Closed::Datagrams(reason.clone()),
    }
}

fn tell<E: DatagramOwner>(element: &mut E, told: Told, context: &mut Context<'_>) {
    match told {
        Told::Opened(id, opened) => element.link_opened(id, opened, context),
        Told::Frame(id, frame) => element.link_frame(id, frame, context),
        Told::Moved(id, remote) => element.link_moved(id, remote, context),
        Told::Silent(id, silent) => element.link_silent(id, silent, context),
        Told::Closed(id, why) => element.link_closed(id, &why, context),
    }
}
